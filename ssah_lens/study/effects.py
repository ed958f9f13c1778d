"""Unit effects side by side: what a cheap number says of a unit, and what its exact effect is.

Three pairs are compared: attribution patching with the exact effect, the effect at the decision position with the
effect at all positions (two estimands), and any score with either.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.promptset import Prompt
from ssah_lens.errors import BadInput
from ssah_lens.intervene.attribution import agreement, attribution
from ssah_lens.intervene.attribution_patching import changeable
from ssah_lens.intervene.edits import Edits, some_units
from ssah_lens.intervene.fill import Fill, estimand
from ssah_lens.intervene.metric import Metric
from ssah_lens.intervene.moments import collect
from ssah_lens.intervene.patching import Patched
from ssah_lens.intervene.sites import Site
from ssah_lens.intervene.sweep import sweep
from ssah_lens.results import EffectAgreement
from ssah_lens.show.effect_figures import agreement_picture
from ssah_lens.show.picture import Picture
from ssah_lens.study.openings import Openings, find_openings
from ssah_lens.units import Kind

SHARES = (0.001, 0.01, 0.05)
"""Top shares of units whose overlap is told; those of fewer than one unit are left out."""
MISSED = 10
"""Units that the guess misses, of the exact top, that a result names."""


def unit_agreement(
    model: ChatModel,
    prompts: Sequence[str | Prompt],
    metric: Metric,
    units: int | None = 200,
    steps: int = 0,
    last: int | None = 1,
    seed: int = 0,
) -> EffectAgreement:
    """Attribution patching of units beside their exact effect, both of mean ablation.

    Args:
        model: the model.
        prompts: what it is asked; the means are taken over them.
        metric: what is read at the decision position.
        units: how many, drawn at random; None for all (a minute or two per thousand on a laptop).
        steps: 0 for the plain gradient, m >= 1 for integrated gradients.
        last: positions that are ablated, from the end; None for all.
        seed: of the sample.
    """
    rows = model.rows(prompts)
    fill = Fill("mean", collect(model, rows))
    edits = some_units(model, units, seed)
    exact = sweep(model, rows, metric, edits, fill, last, what="exact effects")
    guess, _ = guesses(model, rows, metric, fill, edits, steps, last)
    name = f"integrated gradients, {steps} steps" if steps else "attribution patching"
    return compared(
        name, "exact effect", unit_names(edits), exact.effect.mean(1), guess, exact.estimand, metric.name, len(rows)
    )


def agreement_view(
    model: ChatModel,
    prompts: Sequence[str | Prompt],
    of: str = "attribution",
    units: int = 200,
    steps: int = 0,
    openings: Openings | None = None,
    seed: int = 0,
) -> Picture:
    """`agreement_view(model, prompts)`: units as attribution patching guesses them against their exact effect.

    Args:
        model: the model.
        prompts: harmful prompts; the metric is the logit difference of refusing and fulfilling openings.
        of: 'attribution' (against the exact effect), or 'positions' (decision position against all positions).
        units: random units; at all positions each takes a second or two on a laptop.
        steps: 0 for the plain gradient, m >= 1 for integrated gradients.
        openings: first tokens of refusals and answers; found from the model (some seconds) when None.
        seed: of the sample.

    Raises:
        BadInput: another `of`.
    """
    if of not in ("attribution", "positions"):
        raise BadInput(f"no view '{of}': allowed are attribution, positions")
    metric = (openings or find_openings(model, seed)).metric
    if of == "attribution":
        return agreement_picture(unit_agreement(model, prompts, metric, units, steps, seed=seed))
    rows = model.rows(prompts)
    return agreement_picture(position_agreement(model, rows, metric, Fill("mean", collect(model, rows)), units, seed))


def position_agreement(
    model: ChatModel, rows: Sequence[Row], metric: Metric, fill: Fill, units: int, seed: int = 0
) -> EffectAgreement:
    """The effect at the decision position beside the effect at all positions, on a random sample of units.

    Args:
        model, rows, metric, fill: as for `sweep`.
        units: how many are drawn.
        seed: of the sample.
    """
    edits = some_units(model, units, seed)
    here, everywhere = (
        sweep(model, rows, metric, edits, fill, last, what=f"effects at {where}")
        for last, where in ((1, "the decision position"), (None, "all positions"))
    )
    return compared(
        "effect at the decision position", "effect at all positions", unit_names(edits), everywhere.effect.mean(1),
        here.effect.mean(1), f"{estimand(fill, 1)}, and at all positions", metric.name, len(rows),
    )  # fmt: skip


def cell_agreement(exact: Patched, guess: Patched, what: str) -> EffectAgreement:
    """A guessed map beside the exact one, over the cells that patching can change.

    Args:
        exact, guess: maps of the same cells.
        what: the estimand.

    Raises:
        BadInput: maps of other cells.
    """
    if (exact.labels, exact.noising) != (guess.labels, guess.noising):
        raise BadInput("the two maps are not of the same cells; patch the same pairs, site and layers twice")
    where = np.argwhere(changeable(exact))
    text = {"layer": "layer {}", "unit": "head {}", "pos": "position {}"}
    name = lambda i: ", ".join(
        text[a].format(exact.labels[a][k] if a != "pos" else k - len(exact.labels[a]))
        for a, k in zip(exact.axes, i, strict=True)
    )
    labels = [f"{exact.site}, {name(i)}" for i in where]
    nothing = 1.0 if exact.noising else 0.0
    known, guessed = (m.effect[tuple(where.T)] - nothing for m in (exact, guess))
    name_ = f"{guess.method}, {exact.site}"
    return compared(name_, "exact effect", labels, known, guessed, what, exact.metric, len(exact.clean))


def guesses(
    model: ChatModel,
    rows: Sequence[Row],
    metric: Metric,
    fill: Fill,
    edits: Sequence[Edits],
    steps: int,
    last: int | None = 1,
) -> tuple[Float[np.ndarray, " edit"], float]:
    """Attribution of the units of these edits, mean over prompts, and the seconds that it took."""
    started = time.perf_counter()
    found = attribution(model, rows, metric, fill, last, steps)
    kind = lambda e: Kind.MLP if e.site is Site.NEURON else Kind.HEAD
    return np.concatenate([found[kind(e)][e.layer, e.units].mean(-1) for e in edits]), time.perf_counter() - started


def compared(
    name: str,
    against: str,
    labels: Sequence[str] | np.ndarray,
    exact: Float[np.ndarray, " item"],
    guess: Float[np.ndarray, " item"],
    what: str,
    metric: str,
    n: int,
) -> EffectAgreement:
    """Agreement of two effects of the same units or cells; the top are those of the largest change, of either sign.

    Args:
        name, against: what is judged, and by what.
        labels: of the units or cells.
        exact, guess: effects.
        what: the estimand.
        metric: name of the metric.
        n: prompts, or pairs of them.
    """
    shares = [s for s in SHARES if s * len(exact) >= 1] or [1 / len(exact)]
    found = agreement(exact, guess, shares, by_size=True)
    k = max(1, round(shares[-1] * len(exact)))
    rank = np.argsort(np.argsort(-np.abs(guess), kind="stable"), kind="stable")
    top = np.argsort(-np.abs(exact), kind="stable")[:k]
    return EffectAgreement(
        name, against, what, metric, tuple(map(str, labels)), tuple(map(float, exact)), tuple(map(float, guess)),
        None if np.isnan(found.spearman) else found.spearman, found.overlap,
        tuple(str(labels[i]) for i in top if rank[i] >= k)[:MISSED], n,
    )  # fmt: skip


def unit_names(edits: Sequence[Edits]) -> np.ndarray:
    """'neuron 3.141', 'head 7.2': layer and index of every edit."""
    return np.array([f"{e.site} {e.layer}.{u}" for e in edits for u in e.units.tolist()])
