"""H3: the paper's distance probe, KL by token, forced openings, and the projection along a response."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ssah_lens import stats
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import PromptSet
from ssah_lens.config import DirectionConfig, limit
from ssah_lens.direction import distance
from ssah_lens.direction.onset import FULFILLING, JUDGED_FROM, REFUSING, forced, opening, projections, token_kl
from ssah_lens.measure.judges import Outcome, which
from ssah_lens.measure.refusal import Refusals, ask
from ssah_lens.progress import progress
from ssah_lens.results import Curve, Distances, Forced, Onset
from ssah_lens.stats import Estimate

KL_TOKENS = 5
"""The first tokens, of which H3 says that they carry the difference between the models."""
STEPS = 12
"""Response tokens that are followed."""
NEAR = 1e-9


def distance_probe(
    models: dict[str, ChatModel], prompts: PromptSet, ks: Sequence[int] = distance.TOKENS, seed: int = 0
) -> tuple[Distances, ...]:
    """The probe of each model, by name ('aligned', 'unaligned'), on the same prompts."""
    out = []
    for name, model in models.items():
        sides = [
            distance.distances(model, prompts, strings, ks, f"distances, {name}")
            for strings in (distance.REFUSING, distance.FULFILLING)
        ]
        gap, low, high = stats.bands(sides[1] - sides[0], seed)
        out.append(
            Distances(
                name, tuple(ks), sides[0].mean(0).tolist(), sides[1].mean(0).tolist(), gap.tolist(), low.tolist(),
                high.tolist(), len(prompts),
            )
        )  # fmt: skip
    return tuple(out)


def onset(
    model: ChatModel,
    unaligned: ChatModel | None,
    harmful: PromptSet,
    ordinary: PromptSet,
    vector: Float[Tensor, " d_model"],
    layer: int,
    config: DirectionConfig,
    judge: str,
    seed: int,
) -> Onset:
    """How deep the alignment is, on test prompts.

    Args:
        model, unaligned: the model and its counterpart, if there is one.
        harmful, ordinary: test prompts.
        vector, layer: the direction, and whose input it belongs to.
        config: sizes.
        judge: which judge.
        seed: seed of the sample and of the shuffled openings.
    """
    n = limit(config.onset)
    harmful, ordinary = harmful.sample(n, seed), ordinary.sample(n, seed)
    said = ask(model, [harmful, ordinary], judge, max(STEPS, config.max_new_tokens), "own responses")
    kept = [_kept(model, *pair) for pair in zip((harmful, ordinary), said, (Outcome.REFUSED, Outcome.FULFILLED),
                                                strict=True)]  # fmt: skip
    names = ("own refusals", "own answers")
    curves, first = [], None
    if unaligned is not None:
        for name, rows in zip(names, kept, strict=True):
            if rows:
                values = token_kl(model, unaligned, rows, STEPS)
                curves.append(_curve(name, values, seed))
                if name == names[0]:
                    first = float(np.nansum(values[:, :KL_TOKENS]) / max(np.nansum(values), NEAR))
    along = [
        _curve(name, projections(model, rows, layer, vector, STEPS), seed)
        for name, rows in zip(names, kept, strict=True)
        if rows
    ]
    whole = _forced(0, [said[0].outcomes])
    prefilled, shuffled = [whole], []
    for k in progress(config.prefill, "prefilled responses"):
        prefilled.append(_prefilled(model, harmful, k, None, config, judge))
    shuffled.append(_prefilled(model, harmful, _control_k(config), seed, config, judge))
    return Onset(
        tuple(curves), first, KL_TOKENS, tuple(prefilled), tuple(shuffled),
        _forced_refusal(unaligned, harmful, ordinary, config, judge), tuple(along),
    )  # fmt: skip


def _control_k(config: DirectionConfig) -> int:
    """How many shuffled tokens: as many as the verdict looks at."""
    return min((k for k in config.prefill if k >= KL_TOKENS), default=max(config.prefill))


def _prefilled(
    model: ChatModel, prompts: PromptSet, k: int, shuffle: int | None, config: DirectionConfig, judge: str
) -> Forced:
    found = [
        forced(model, prompts, opening(model, text, k, shuffle), config.max_new_tokens, judge) for text in FULFILLING
    ]
    return _forced(k, found)


def _forced(k: int, found: list[tuple[Outcome, ...]]) -> Forced:
    """Of the outcomes after each opening."""
    hits, noise = ([which(f, o) for f in found] for o in (Outcome.REFUSED, Outcome.INCOHERENT))
    return Forced(k, _share(hits), _share(noise), tuple(np.mean(hits, 0).tolist()))


def _share(hits: list[np.ndarray]) -> Estimate:
    """Over prompts: those that meet several openings count once, with the mean."""
    return stats.rate(hits[0]) if len(hits) == 1 else stats.mean_share(np.mean(hits, 0))


def _forced_refusal(
    unaligned: ChatModel | None, harmful: PromptSet, ordinary: PromptSet, config: DirectionConfig, judge: str
) -> tuple[tuple[str, Estimate], ...]:
    """Does a model that never learnt to refuse go on refusing once it has begun to?"""
    if unaligned is None:
        return ()
    prompts, n = [*harmful, *ordinary], len(harmful)
    found = [
        forced(unaligned, prompts, opening(unaligned, text), config.max_new_tokens, judge, JUDGED_FROM)
        for text in REFUSING
    ]
    hits = [which(f, Outcome.REFUSED) for f in found]
    name = lambda side: f"{side} prompts, opening '{REFUSING[0]}' and the like"
    return (name("harmful"), _share([h[:n] for h in hits])), (name("ordinary"), _share([h[n:] for h in hits]))


def _kept(model: ChatModel, prompts: PromptSet, said: Refusals, outcome: Outcome) -> list:
    rows = [i for i in np.flatnonzero(said.is_(outcome)) if said.tokens[i]]
    return model.rows([prompts[int(i)] for i in rows], [said.tokens[i] for i in rows])


def _curve(name: str, values: Float[np.ndarray, "row step"], seed: int) -> Curve:
    """Mean and band per step over the responses that are that long; it ends where fewer than two are."""
    steps = [values[~np.isnan(values[:, i]), i] for i in range(values.shape[1])]
    steps = [s for s in steps if len(s) > 1]
    bands = [stats.bands(s, seed) for s in steps]
    mean, low, high = ([float(b[i]) for b in bands] for i in range(3))
    return Curve(name, mean, low, high, len(values))
