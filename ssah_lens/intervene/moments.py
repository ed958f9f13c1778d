"""Mean and variance of every unit's activation, streamed exactly (Welford 1962; Chan, Golub and LeVeque 1983).

One pass gives the means that mean ablation puts in a unit's place, and the variances that WIFV is made of. float64
accumulators; memory does not grow with the number of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ssah_lens.chat.batch import Batch, Position, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.progress import progress
from ssah_lens.units import Kind


@dataclass
class Moments:
    """Running moments per kind, layer, position class and channel (a head has `d_head` channels, a neuron one).

    Attributes:
        count: tokens seen per position class, [position].
        mean: [layer, position, channel], float64.
        m2: sum of squared deviations from the mean, same shape.
    """

    count: Float[Tensor, " position"]
    mean: dict[Kind, Float[Tensor, "layer position channel"]]
    m2: dict[Kind, Float[Tensor, "layer position channel"]]

    @classmethod
    def zeros(cls, model: ChatModel) -> Moments:
        """Nothing seen yet."""
        grid = model.grid
        width = {Kind.MLP: grid.d_mlp, Kind.HEAD: grid.n_heads * model.anatomy.d_head}
        blank = lambda: {k: torch.zeros(grid.n_layers, len(Position), width[k], dtype=torch.float64) for k in Kind}
        return cls(torch.zeros(len(Position), dtype=torch.float64), blank(), blank())

    def merged(self, other: Moments) -> Moments:
        """Moments of both samples together (Chan's formula)."""
        n, m = self.count[:, None], other.count[:, None]
        total = (n + m).clamp(min=1)
        delta = {k: other.mean[k] - self.mean[k] for k in Kind}
        return Moments(
            self.count + other.count,
            {k: self.mean[k] + delta[k] * (m / total) for k in Kind},
            {k: self.m2[k] + other.m2[k] + delta[k].square() * (n * m / total) for k in Kind},
        )

    def means(self, kind: Kind) -> Float[Tensor, "layer position channel"]:
        """Mean per position class; a class that was never seen gets the overall mean, not a silent zero."""
        seen = (self.count > 0)[:, None]
        share = (self.count / self.count.sum().clamp(min=1))[:, None]
        return torch.where(seen, self.mean[kind], (self.mean[kind] * share).sum(1, keepdim=True))

    def variance(self, kind: Kind, position: Position) -> Float[Tensor, "layer channel"]:
        """Population variance over the tokens of one position class; 0 where none were seen."""
        return self.m2[kind][:, position] / self.count[position].clamp(min=1)

    def update(
        self, layer: int, kind: Kind, position: Position, x: Float[Tensor, "token channel"], seen: float
    ) -> None:
        """Folds in new tokens by Chan's pairwise formula; `seen` is the count before them."""
        n = x.shape[0]
        if n == 0:
            return
        x = x.double()
        mean = x.mean(0)
        m2 = (x - mean).square().sum(0)
        old = self.mean[kind][layer, position]
        delta = mean.cpu() - old
        total = seen + n
        self.mean[kind][layer, position] = old + delta * (n / total)
        self.m2[kind][layer, position] += m2.cpu() + delta.square() * (seen * n / total)


@torch.no_grad()
def collect(model: ChatModel, rows: Sequence[Row], what: str = "activation statistics") -> Moments:
    """Streams the moments of every unit over these rows, padding left out.

    Args:
        model: the model to look at.
        rows: prompts, with responses when the RESPONSE class is wanted.
        what: label of the progress bar.
    """
    moments = Moments.zeros(model)
    batches = model.batches(rows, share_prefix=False)
    for _, batch in progress(batches, what):
        with batches.room():
            moments = moments.merged(_of_batch(model, batch))
    return moments


def _of_batch(model: ChatModel, batch: Batch) -> Moments:
    out = Moments.zeros(model)
    where = {p: ((batch.positions == p) & (batch.mask == 1)) for p in Position}
    hooks = [
        (kind.hook(layer), _reader(out, layer, kind, where))
        for kind in model.grid.kinds
        for layer in range(model.grid.n_layers)
    ]
    with model.bridge.hooks(fwd_hooks=hooks):
        model.logits(batch)
    out.count += torch.tensor([float(where[p].sum()) for p in Position], dtype=torch.float64)
    return out


def _reader(moments: Moments, layer: int, kind: Kind, where: dict[Position, Tensor]):
    def hook(activation: Tensor, hook) -> None:
        flat = activation.flatten(2)
        for position, mask in where.items():
            moments.update(layer, kind, position, flat[mask], float(moments.count[position]))

    return hook
