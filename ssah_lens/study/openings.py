"""The first tokens that open a refusal, and those that open an answer, found from the model itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import instructions, pairs
from ssah_lens.intervene.metric import Metric, logit_difference
from ssah_lens.measure.judges import Outcome
from ssah_lens.measure.refusal import MIN_REFUSAL_ODDS, ask, refusal_tokens
from ssah_lens.study.units import harmless_mix

N_PROMPTS = 40
"""Train prompts on each side that are asked."""
NEW_TOKENS = 10
"""Long enough for the judge to know a refusal."""
MIN_SHARE = 0.04
"""A token opens answers when at least this share of the model's own answers begin with it."""
FALLBACK_OPENINGS = ("Sure", "Here", "To", "Certainly", "Yes", "The", "Of course")
"""First tokens to watch in a model that hardly ever answers."""


_FOUND: WeakKeyDictionary[ChatModel, tuple[tuple, Openings]] = WeakKeyDictionary()
"""What was found last of a model, behind the state that it was found in."""


@dataclass(frozen=True)
class Openings:
    """Token ids that open refusals and answers; disjoint, neither is empty."""

    refusing: tuple[int, ...]
    fulfilling: tuple[int, ...]

    @property
    def metric(self) -> Metric:
        """Logit difference, refusing minus fulfilling."""
        return logit_difference(self.refusing, self.fulfilling)


def find_openings(model: ChatModel, seed: int = 0) -> Openings:
    """Asks the model train prompts, harmful ones, harmless twins and ordinary ones, and reads how it begins.

    Responses are sampled: greedy ones show the commonest opening only. What was found is kept as long as the model
    stays as it is; with hooks set it is found anew.

    Args:
        model: the model.
        seed: of the prompts and the sampling.
    """
    if any(point.fwd_hooks for point in model.bridge.hook_dict.values()):
        return _find(model, seed)
    state = seed, model.system, _weights(model)
    kept = _FOUND.get(model)
    if kept is None or kept[0] != state:
        kept = _FOUND[model] = state, _find(model, seed)
    return kept[1]


def _weights(model: ChatModel) -> tuple[int, ...]:
    """Changes whenever weights are written or replaced."""
    return tuple(n for p in model.plain.parameters() for n in (p._version, p.data_ptr()))


def _find(model: ChatModel, seed: int) -> Openings:
    harmful, twins = pairs("train")
    harmless = harmless_mix(twins, instructions("train"), N_PROMPTS, seed)
    found = ask(
        model,
        [harmful.sample(N_PROMPTS, seed), harmless],
        max_new_tokens=NEW_TOKENS,
        what="finding openings",
        sample_seed=seed,
    )
    refusing = refusal_tokens(model, *found)
    firsts = [
        Counter(t[0] for t, o in zip(f.tokens, f.outcomes, strict=True) if o is kind and t)
        for f, kind in zip(found, (Outcome.REFUSED, Outcome.FULFILLED), strict=True)
    ]
    share = lambda counts, token: counts[token] / max(counts.total(), 1)
    fulfilling = [
        token
        for token in firsts[1]
        if share(firsts[1], token) >= max(MIN_SHARE, MIN_REFUSAL_ODDS * share(firsts[0], token))
        and token not in refusing
    ]
    if not fulfilling:
        own = {model.response_tokens(text, ended=False)[0] for text in FALLBACK_OPENINGS}
        fulfilling = sorted(own - set(refusing)) or sorted(own)
        refusing = sorted(set(refusing) - set(fulfilling)) or refusing
    return Openings(tuple(sorted(refusing)), tuple(sorted(fulfilling)))
