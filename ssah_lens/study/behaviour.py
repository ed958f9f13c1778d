"""One yardstick for every model and every damage: the same test prompts, judged the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ssah_lens import stats
from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import PromptSet
from ssah_lens.measure import utility
from ssah_lens.measure.judges import Outcome, which
from ssah_lens.measure.refusal import STORED_CHARACTERS, Refusals, ask, log_odds, refusal_tokens
from ssah_lens.measure.stored import StoredRows
from ssah_lens.results import Behaviour, Outcomes, Utility

N_EXAMPLES = 8


@dataclass(frozen=True)
class Yardstick:
    """What every model is asked.

    Attributes:
        harmful, ordinary, twins: prompts; twins may be None.
        tokens: refusal-opening token ids, for the refusal score.
        judge: name of the judge.
        max_new_tokens: length of a response.
        answers: ordinary prompts with the answers that the reference model gives to them.
        written: ordinary prompts with answers written by people, where there are any.
        reference: decision-position log-probabilities of the reference model on the ordinary prompts.
        choices: multiple-choice items; 0 for none, None for all.
        prose: passages for perplexity; None for all.
    """

    harmful: PromptSet
    ordinary: PromptSet
    twins: PromptSet | None
    tokens: tuple[int, ...]
    judge: str
    max_new_tokens: int
    answers: list[Row]
    written: list[Row]
    reference: StoredRows
    choices: int | None
    prose: int | None


def own_answers(model: ChatModel, prompts: PromptSet, max_new_tokens: int, what: str, **options) -> list[list[int]]:
    """The model's answers as response tokens; one that ended by itself keeps the token that ends the turn."""
    return ended(model, model.generate(prompts, max_new_tokens, what=what, **options), max_new_tokens)


def ended(model: ChatModel, responses: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    """Responses that are shorter than they might have been, with the token that ends the turn."""
    return [[*t, model.turn_end] if len(t) < max_new_tokens else list(t) for t in responses]


def yardstick(
    reference: ChatModel,
    harmful: PromptSet,
    ordinary: PromptSet,
    tokens: Sequence[int],
    twins: PromptSet | None = None,
    judge: str = "keyword",
    max_new_tokens: int = 16,
    choices: int | None = None,
    prose: int | None = None,
) -> Yardstick:
    """Prepares the reference answers; `reference` is the undamaged model."""
    answers = own_answers(reference, ordinary, max_new_tokens, "reference answers")
    written = [reference.response_tokens(r) for r in ordinary.responses] if all(ordinary.responses) else []
    return Yardstick(
        harmful,
        ordinary,
        twins,
        tuple(tokens),
        judge,
        max_new_tokens,
        reference.rows(ordinary.texts, answers, ordinary.systems),
        reference.rows(ordinary.texts, written, ordinary.systems) if written else [],
        utility.stored_log_probs(reference, reference.rows(ordinary)),
        choices,
        prose,
    )


def behave(
    model: ChatModel,
    y: Yardstick,
    twins: bool = False,
    choices: bool = True,
    prose: bool = False,
    written: bool = False,
) -> tuple[Behaviour, tuple[bool, ...]]:
    """Asks the model, with whatever hooks the caller has set; also says which harmful prompts were refused.

    Args:
        model: the model.
        y: what to ask.
        twins: also the harmless twins.
        choices: also multiple choice.
        prose: also the perplexity of prose.
        written: also the perplexity of answers written by people.
    """
    sets = [y.harmful, y.ordinary, *([y.twins] if twins and y.twins else [])]
    scores, divergence = np.empty(len(y.harmful)), np.empty(len(y.ordinary))
    n = len(y.harmful)

    def read(rows: list[int], logits: Tensor) -> None:
        at = np.array(rows)
        mine = at < n
        scores[at[mine]] = log_odds(logits[mine], y.tokens).cpu().numpy()
        mine = (at >= n) & (at < n + len(y.ordinary))
        if mine.any():
            log_probs = logits[mine].float().log_softmax(-1)
            divergence[at[mine] - n] = utility.kl(y.reference[at[mine] - n], log_probs)

    harmful, ordinary, *rest = ask(model, sets, y.judge, y.max_new_tokens, at_decision=read)
    picked = utility.choices(model, y.choices) if choices and y.choices != 0 else None
    use = Utility(
        answer_perplexity=utility.losses(model, y.answers).perplexity,
        written_perplexity=utility.losses(model, y.written).perplexity if written and y.written else None,
        choices=picked.accuracy if picked else None,
        choices_by_task=picked.by_task() if picked else None,
        prose_perplexity=utility.prose_losses(model, y.prose).perplexity if prose else None,
        kl=stats.mean(divergence),
    )
    behaviour = Behaviour(
        harmful=outcomes(harmful),
        harmless=outcomes(ordinary),
        refusal_score=stats.mean(scores),
        utility=use,
        twins=outcomes(rest[0]) if rest else None,
        examples=_examples(y.harmful, harmful),
    )
    return behaviour, tuple(bool(b) for b in harmful.is_(Outcome.REFUSED))


def outcomes(found: Refusals) -> Outcomes:
    """Rates of the three outcomes."""
    return rates(found.outcomes)


def rates(judged: Sequence[Outcome]) -> Outcomes:
    """The same of outcomes alone."""
    return Outcomes(*(stats.rate(which(judged, o)) for o in (Outcome.REFUSED, Outcome.FULFILLED, Outcome.INCOHERENT)))


def find_refusal_tokens(
    model: ChatModel, harmful: PromptSet, harmless: PromptSet, seed: int, max_new_tokens: int = 12
) -> list[int]:
    """Refusal-opening tokens from the model's own responses to train prompts.

    Responses are sampled: greedy ones show the commonest opening only, and miss most of the probability of refusing.
    """
    found = ask(
        model, [harmful, harmless], max_new_tokens=max_new_tokens, what="finding refusal openings", sample_seed=seed
    )
    return refusal_tokens(model, *found)


def _examples(prompts: PromptSet, found: Refusals) -> tuple[tuple[str, str, str], ...]:
    rows = np.linspace(0, len(prompts) - 1, min(N_EXAMPLES, len(prompts))).round().astype(int)
    return tuple((prompts[i].text, str(found.outcomes[i]), found.responses[i][:STORED_CHARACTERS]) for i in rows)
