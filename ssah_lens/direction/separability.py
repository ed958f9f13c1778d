"""Is the choice linearly readable? Held-out AUROC of two linear read-outs, per layer and post-instruction position.

`mean difference` projects on the difference of class means: one dimension, no fitting beyond two means. `probe` is a
ridge classifier on centred states (regularised linear discriminant, closed form). Both are fitted on train
prompts, the cell is chosen on validation prompts, numbers are of test prompts. The null repeats all of it with shuffled
labels in every split (pairs keep together: the labels are swapped inside a pair).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ssah_lens.direction.states import States
from ssah_lens.errors import BadInput

RIDGE = 0.1
"""Penalty in units of a state's mean squared distance from the centre (so that it turns with the residual stream)."""
TINY = 1e-9
"""Keeps the equation solvable where all states are the same (block 0)."""
MIN_CLASS = 4
"""With fewer prompts on a side an AUROC says nothing."""


@dataclass(frozen=True)
class ReadOut:
    """Weights of both read-outs, one column per labelling (the first is the real one).

    Attributes:
        mean, probe: directions in the residual stream, [layer, position, d_model, column].
    """

    mean: Float[Tensor, "layer position d_model column"]
    probe: Float[Tensor, "layer position d_model column"]


def fit(states: States, labels: Bool[np.ndarray, "prompt column"]) -> ReadOut:
    """Fits both read-outs in every cell, to every labelling at once.

    Args:
        states: train prompts.
        labels: True = positive; one column per labelling.

    Raises:
        BadInput: a labelling with one side only.
    """
    if (labels.all(0) | ~labels.any(0)).any():
        raise BadInput("a read-out needs train prompts on both sides")
    y = torch.as_tensor(labels, dtype=torch.float32)
    sides = y / y.sum(0) - (1 - y) / (1 - y).sum(0)
    # Both sides weigh the same however many prompts they have.
    signs = 2 * y - 1
    weight = torch.where(y > 0, 0.5 / y.mean(0), 0.5 / (1 - y).mean(0))
    n, n_layers, n_pos, d = states.values.shape
    mean = torch.empty(n_layers, n_pos, d, y.shape[1])
    probe = torch.empty_like(mean)
    for layer in range(n_layers):
        for position in range(n_pos):
            x = states.values[:, layer, position]
            mean[layer, position] = x.T @ sides
            z = (x - x.mean(0)).double()
            kernel = z @ z.T
            penalty = RIDGE * float(kernel.diagonal().mean()) + TINY
            dual = torch.linalg.solve(kernel + penalty * torch.eye(n, dtype=z.dtype), (signs * weight).double())
            probe[layer, position] = (z.T @ dual).float()
    return ReadOut(mean, probe)


def project(
    states: States, weights: Float[Tensor, "layer position d_model column"]
) -> Float[np.ndarray, "prompt layer position column"]:
    """Scores of prompts in every cell."""
    return torch.einsum("nlpd,lpdc->nlpc", states.values, weights).numpy()


def areas(scores: Float[np.ndarray, "prompt *cell"], labels: Bool[np.ndarray, " prompt"]) -> Float[np.ndarray, "*cell"]:
    """AUROC of every cell by the rank sum (Mann and Whitney 1947); ties count half."""
    from scipy.stats import rankdata

    labels = np.asarray(labels, dtype=bool)
    p, n = labels.sum(), (~labels).sum()
    if not p or not n:
        raise BadInput("an AUROC needs prompts on both sides")
    ranks = rankdata(scores, axis=0)[labels].sum(0)
    return (ranks - p * (p + 1) / 2) / (p * n)


def shuffles(
    labels: Bool[np.ndarray, " prompt"], n: int, seed: int, pairs: bool = False
) -> Bool[np.ndarray, "prompt labelling"]:
    """n random labellings: permuted, or swapped inside pairs.

    Args:
        labels: the real ones; with `pairs`, the first half are one side of the pairs and the second half the other.
        n: how many.
        seed: seed.
        pairs: keep pairs together.
    """
    rng = np.random.default_rng(seed)
    if not pairs:
        return np.stack([rng.permutation(labels) for _ in range(n)], 1)
    half = len(labels) // 2
    swap = rng.integers(0, 2, (half, n)).astype(bool)
    return np.concatenate([labels[:half, None] ^ swap, labels[half:, None] ^ swap])


def best_cell(area: Float[np.ndarray, "layer position"]) -> tuple[int, int]:
    """The cell that separates best; of equal ones the earliest layer, and there the last position."""
    top = area.max() - 1e-9
    layer = int(np.flatnonzero((area >= top).any(1))[0])
    return layer, int(np.flatnonzero(area[layer] >= top)[-1])
