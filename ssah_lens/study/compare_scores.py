"""Which score is best? Each beside the exact effect, and beside the others at equal utility lost.

Two questions, since single effects do not add up: does a score rank units as their exact effect does (Spearman, overlap
of the top 1%), and does the set that it ranks highest carry refusal (mean ablation at three doses)? The second decides.
Everything is measured on validation prompts: a choice among scores must not see the test split.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.attribution import agreement
from ssah_lens.intervene.hooks import ablated
from ssah_lens.intervene.sweep import Fill, estimand
from ssah_lens.progress import progress
from ssah_lens.results import Behaviour, ComparedScore, Dose, Match, ScoreComparison
from ssah_lens.score import NAMES, score
from ssah_lens.score.base import Calibration, Measured, PerUnit, Score, Scores
from ssah_lens.score.roles import ranking
from ssah_lens.study.behaviour import Yardstick, behave
from ssah_lens.study.keep import Keep, anew
from ssah_lens.study.sizes import ANSWER_TOLERANCE
from ssah_lens.units import Kind, Role, top_units

DOSES = (0.001, 0.003, 0.01)
"""Shares of each kind's units, up to the 1% that the paper's SCU are."""
TOP = 0.01
RANDOM = "random"
_Line = tuple[ComparedScore, dict[str, list[int]]]
"""A score, and the flat indices of its top units by kind."""


def compare_scores(
    model: ChatModel,
    data: Calibration,
    y: Yardstick,
    names: Sequence[str] | None = None,
    doses: Sequence[float] = DOSES,
    sample: Measured | None = None,
    keep: Keep = anew,
) -> ScoreComparison:
    """Runs every score on the same calibration data and asks the same validation prompts without its top units.

    Args:
        model: the model.
        data: calibration data (train split), with refusals and refusal tokens.
        y: what to ask (validation split), from `behaviour.yardstick` of the undamaged model.
        names: scores to compare; by default all that the data allow. A random ranking stands beside them.
        doses: shares of each kind's units to ablate, rising.
        sample: units and prompts that the exact effect is measured on; by default as `data.measured` says.
        keep: where finished scores are kept.

    Raises:
        BadInput: no safety data; a score that needs what the data do not hold.
    """
    if not data.safety:
        raise BadInput(f"'{model.name}' hardly refuses anything: there is no refusal whose units could be compared")
    if not doses or list(doses) != sorted(doses) or not 0 < doses[0] <= doses[-1] <= 1:
        raise BadInput(f"doses are {tuple(doses)}: allowed are shares of units between 0 and 1, rising")
    data = replace(data, measured=sample or data.measured)
    names = _possible(data) if names is None else names
    functions = {name: score(name) for name in names}  # an unknown name is refused before any work
    exact = _Timed.run(model, data, score("exact"))
    exact_seconds = keep("exact-seconds", float, lambda: exact.seconds)  # resumed, it is only read back
    baseline = keep("baseline", Behaviour, lambda: behave(model, y, choices=False)[0])

    def line(name: str) -> _Line:
        run = exact if name == "exact" else _Timed.run(model, data, functions.get(name, _random))
        tried = tuple(_dose(model, data, y, run.scores, share) for share in doses)
        safety, utility = (
            matches(*sides)
            for sides in ((exact.scores.safety, run.scores.safety), (exact.scores.utility, run.scores.utility))
        )
        lost = [at_equal_utility(*_curve(baseline, tried, what), ANSWER_TOLERANCE) for what in ("rate", "score")]
        top = top_units(model.grid, ranking(run.scores, Role.SCU), TOP)
        listed = {str(k): np.flatnonzero(m).tolist() for k, m in top.masks.items()}
        return ComparedScore(name, run.seconds, run.passes, safety, utility, tried, *lost), listed

    lines = [keep(n, _Line, partial(line, n)) for n in progress([*names, RANDOM], "comparing scores")]
    m = data.measured
    return ScoreComparison(
        model.name,
        baseline,
        ANSWER_TOLERANCE,
        estimand(Fill("mean", data.moments), m.last),
        min(m.prompts or len(data.safety), len(data.safety)),
        exact_seconds,
        tuple(compared for compared, _ in lines),
        shared_tops({compared.name: top for compared, top in lines}),
    )


def shared_tops(tops: dict[str, dict[str, list[int]]]) -> dict[str, dict[str, float]]:
    """Share of one score's top units that are among another one's, over both kinds.

    Args:
        tops: score -> kind -> flat indices.
    """
    sets = {name: {(kind, i) for kind, chosen in top.items() for i in chosen} for name, top in tops.items()}
    return {a: {b: len(x & y) / max(len(x), 1) for b, y in sets.items()} for a, x in sets.items()}


def matches(exact: PerUnit, guess: PerUnit) -> dict[str, Match]:
    """Agreement per kind over the units that both have; units are ranked within their kind.

    Args:
        exact: the effects, NaN where not measured.
        guess: the score.
    """
    out = {}
    for kind in Kind:
        both = ~(np.isnan(exact[kind]) | np.isnan(guess[kind]))
        a, b = exact[kind][both], guess[kind][both]
        if a.size < 2:
            continue
        if np.ptp(a) == 0 or np.ptp(b) == 0:  # no order, so no correlation, and no top
            out[str(kind)] = Match(None, 0.0, a.size)
            continue
        found = agreement(-a, -b, (TOP,))  # its top is the most negative
        out[str(kind)] = Match(found.spearman, found.overlap[TOP], a.size)
    return out


def at_equal_utility(rise: Sequence[float], lost: Sequence[float], budget: float) -> float:
    """The most refusal lost along the curve while the utility lost stays within the budget.

    The curve begins at (0, 0), where nothing is ablated, and is linear between doses.

    Args:
        rise: utility lost at each dose, in the order of doses.
        lost: refusal lost at each dose.
        budget: utility that may be lost.
    """
    best, before = 0.0, (0.0, 0.0)
    for point in zip(rise, lost, strict=True):
        inside = [p <= budget for p in (before[0], point[0])]
        if inside[1]:
            best = max(best, point[1])
        if inside[0] != inside[1]:
            share = (budget - before[0]) / (point[0] - before[0])
            best = max(best, before[1] + share * (point[1] - before[1]))
        before = point
    return best


def _possible(data: Calibration) -> list[str]:
    """`exact` only when it was measured for all units (then it costs nothing more to rank by it)."""
    partial = data.measured.units is not None or data.measured.layers is not None
    lacking = {"contrast": data.unaligned is None, "exact": partial}
    return [name for name in NAMES if not lacking.get(name)]


def _random(model: ChatModel, data: Calibration) -> Scores:
    rng = np.random.default_rng(data.seed)
    draw = lambda: {k: rng.normal(size=(model.grid.n_layers, model.grid.width(k))) for k in Kind}
    return Scores(draw(), draw(), signed=False)


def _dose(model: ChatModel, data: Calibration, y: Yardstick, scores: Scores, share: float) -> Dose:
    units = top_units(model.grid, ranking(scores, Role.SCU), share)
    with ablated(model, units, "mean", data.moments):
        return Dose(share, units.share.parameters, behave(model, y, choices=False)[0])


def _curve(baseline: Behaviour, doses: Sequence[Dose], what: str) -> tuple[list[float], list[float]]:
    """(rise of the loss on own answers in nats per token, fall of the refusal rate or score) at each dose."""
    loss = lambda b: math.log(b.utility.answer_perplexity.value)
    refusal = lambda b: (b.harmful.refused if what == "rate" else b.refusal_score).value
    rise = [loss(d.behaviour) - loss(baseline) for d in doses]
    return rise, [refusal(baseline) - refusal(d.behaviour) for d in doses]


@dataclass(frozen=True)
class _Timed:
    """Scores and what they cost: seconds, and forward work in passes over the calibration data."""

    scores: Scores
    seconds: float
    passes: float

    @classmethod
    def run(cls, model: ChatModel, data: Calibration, function: Score) -> _Timed:
        started = time.perf_counter()
        with _tokens_counted(model, data) as done:
            scores = function(model, data)
        seconds = time.perf_counter() - started
        whole = sum(len(r.ids) for r in (*data.safety, *data.utility)) * model.grid.n_layers
        return cls(scores, seconds, sum(done) / whole)


@contextmanager
def _tokens_counted(model: ChatModel, data: Calibration) -> Iterator[list[int]]:
    """Lists, for every run of any block inside, the tokens that went through it."""
    done: list[int] = []

    def count(module, args, kwargs) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        done.append(x.shape[0] * x.shape[1])

    models = [model] if data.unaligned is None else [model, data.unaligned]
    blocks = [b for m in models for b in (*(b.module for b in m.anatomy.blocks), *m.bridge.blocks)]
    handles = [b.register_forward_pre_hook(count, with_kwargs=True) for b in blocks]
    try:
        yield done
    finally:
        for handle in handles:
            handle.remove()
