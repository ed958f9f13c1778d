"""H1: how well the choice, and harm, are read off one direction on test prompts, beside shuffled labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ssah_lens import stats
from ssah_lens.direction.separability import MIN_CLASS, ReadOut, areas, best_cell, fit, project, shuffles
from ssah_lens.direction.states import States
from ssah_lens.results import Elsewhere, Readout
from ssah_lens.stats import Estimate

CHOICE, HARM = "choice", "harm"


@dataclass(frozen=True)
class Labelled:
    """Prompts of one split with their states.

    Attributes:
        states: of all prompts.
        harm: True on harmful prompts.
        choice: True on refused prompts.
        pairs: number of matched pairs: the first `pairs` prompts are harmful, the next `pairs` their twins.
        edge: True on borderline prompts (test split only); they take part in `transfer` and `within` alone.
        name: of the prompts, where they are others than the split's.
    """

    states: States
    harm: Bool[np.ndarray, " prompt"]
    choice: Bool[np.ndarray, " prompt"]
    pairs: int
    edge: Bool[np.ndarray, " prompt"]
    name: str = ""

    def rows(self, target: str) -> np.ndarray:
        """What a read-out of this target is about: matched pairs for harm, all but borderline ones for the choice."""
        return np.flatnonzero(np.arange(len(self.harm)) < 2 * self.pairs if target == HARM else ~self.edge)

    def of(self, target: str) -> Bool[np.ndarray, " prompt"]:
        return self.harm if target == HARM else self.choice


def readout(
    target: str,
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    n_null: int,
    seed: int,
    others: Labelled | None = None,
) -> Readout | None:
    """Fits on train, chooses the cell on validation, measures on test; None where a split has one side only.

    Args:
        target: 'choice' or 'harm'.
        train, validation, test: the splits.
        n_null: shuffled labellings.
        seed: of the shuffles.
        others: prompts of another origin to measure on as well.
    """
    rows = [part.rows(target) for part in (train, validation, test)]
    labels = [part.of(target)[r] for part, r in zip((train, validation, test), rows, strict=True)]
    if any(min(y.sum(), (~y).sum()) < MIN_CLASS for y in labels):
        return None
    shuffled = [
        np.concatenate([y[:, None], shuffles(y, n_null, seed + i, pairs=target == HARM)], 1)
        for i, y in enumerate(labels)
    ]
    fitted = fit(train.states.where(rows[0]), shuffled[0])
    mean = _areas(fitted, validation, rows[1], shuffled[1])
    cells = [best_cell(mean[..., c]) for c in range(mean.shape[-1])]
    layer, position = cells[0]
    # A shuffled read-out meets shuffled test labels: against the true ones it would say how far the choice dominates
    # the states (any labelling finds a direction that dominates), not what an unreadable choice would score.
    test_mean = _areas(fitted, test, rows[2], shuffled[2])
    probe = areas(project(test.states.where(rows[2]), fitted.probe[..., :1]), labels[2])[..., 0]
    null = [float(test_mean[cell[0], cell[1], c]) for c, cell in enumerate(cells)][1:]
    scores, by_probe = _at(cells[0], fitted, test)
    main, other = test.of(target), test.of(CHOICE if target == HARM else HARM)
    inside = np.isin(np.arange(len(scores)), rows[2])
    # Does it read more than its target? The choice among harmless prompts alone; harm among refused prompts alone.
    alone = ~test.harm if target == HARM else test.choice
    return Readout(
        target,
        test_mean[..., 0].tolist(),
        probe.tolist(),
        layer,
        position - test.states.values.shape[2],
        stats.auroc(scores[inside & main], scores[inside & ~main]),
        stats.auroc(by_probe[inside & main], by_probe[inside & ~main]),
        tuple(null),
        _auroc(scores, main, test.edge),
        _auroc(scores, other, inside),
        _auroc(scores, other, alone),
        None if others is None else _elsewhere(cells[0], fitted, others),
    )


def _at(cell: tuple[int, int], fitted: ReadOut, part: Labelled) -> list[Float[np.ndarray, " prompt"]]:
    """Scores of all prompts in one cell, by the difference of means and by the probe."""
    layer, position = cell
    states = part.states.values[:, layer, position]
    return [(states @ weights[layer, position, :, 0]).numpy() for weights in (fitted.mean, fitted.probe)]


def _elsewhere(cell: tuple[int, int], fitted: ReadOut, part: Labelled) -> Elsewhere:
    """Both read-outs on prompts of another origin, against their label and against behaviour."""
    everyone = np.ones(len(part.harm), dtype=bool)
    found = (_auroc(s, labels, everyone) for s in _at(cell, fitted, part) for labels in (part.harm, part.choice))
    return Elsewhere(part.name, *found)


def _areas(fitted: ReadOut, part: Labelled, rows: np.ndarray, labels: Bool[np.ndarray, "prompt column"]):
    """AUROC of the difference of means in every cell, each labelling against its own labels."""
    scores = project(part.states.where(rows), fitted.mean)
    return np.stack([areas(scores[..., c], labels[:, c]) for c in range(labels.shape[1])], -1)


def _auroc(scores: Float[np.ndarray, " prompt"], labels: np.ndarray, chosen: np.ndarray) -> Estimate | None:
    positive, negative = scores[chosen & labels], scores[chosen & ~labels]
    if min(len(positive), len(negative)) < MIN_CLASS:
        return None
    return stats.auroc(positive, negative)
