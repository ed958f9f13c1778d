"""Mean and variance of every unit's activation, streamed exactly (Welford 1962; Chan, Golub and LeVeque 1983).

One pass gives the means that mean ablation puts in a unit's place, and the variances that WIFV is made of. float64
accumulators; memory does not grow with the number of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ssah_lens.chat.batch import Batch, Position, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.sites import Site, parse_site
from ssah_lens.progress import progress
from ssah_lens.units import Kind


@dataclass
class Moments:
    """Running moments per kind, layer, position class and channel (a head has `d_head` channels, a neuron one).

    Attributes:
        count: tokens seen per position class, [position].
        mean: [layer, position, channel], float64.
        m2: sum of squared deviations from the mean, same shape.
        outputs: means alone, of whole sites: residual stream, attention and MLP output.
    """

    count: Float[Tensor, " position"]
    mean: dict[Kind, Float[Tensor, "layer position channel"]]
    m2: dict[Kind, Float[Tensor, "layer position channel"]]
    outputs: dict[Site, Float[Tensor, "layer position channel"]] = field(default_factory=dict)

    @classmethod
    def zeros(cls, model: ChatModel, sites: Sequence[Site] = ()) -> Moments:
        """Nothing seen yet."""
        grid = model.grid
        width = {Kind.MLP: grid.d_mlp, Kind.HEAD: grid.n_heads * model.anatomy.d_head}
        blank = lambda: {k: torch.zeros(grid.n_layers, len(Position), width[k], dtype=torch.float64) for k in Kind}
        outputs = {
            s: torch.zeros(grid.n_layers, len(Position), s.width(model.anatomy), dtype=torch.float64) for s in sites
        }
        return cls(torch.zeros(len(Position), dtype=torch.float64), blank(), blank(), outputs)

    def merged(self, other: Moments) -> Moments:
        """Moments of both samples together (Chan's formula)."""
        n, m = self.count[:, None], other.count[:, None]
        total = (n + m).clamp(min=1)
        delta = {k: other.mean[k] - self.mean[k] for k in Kind}
        return Moments(
            self.count + other.count,
            {k: self.mean[k] + delta[k] * (m / total) for k in Kind},
            {k: self.m2[k] + other.m2[k] + delta[k].square() * (n * m / total) for k in Kind},
            {s: mine + (other.outputs[s] - mine) * (m / total) for s, mine in self.outputs.items()},
        )

    def means(self, kind: Kind) -> Float[Tensor, "layer position channel"]:
        """Mean per position class; a class that was never seen gets the overall mean, not a silent zero."""
        return self._filled(self.mean[kind])

    def means_at(self, site: Site) -> Float[Tensor, "layer position channel"]:
        """The same at a whole site; neurons and heads are all of theirs.

        Raises:
            BadInput: a site whose means were not collected.
        """
        if site in (Site.NEURON, Site.HEAD):
            return self.means(Kind.MLP if site is Site.NEURON else Kind.HEAD)
        if site not in self.outputs:
            raise BadInput(
                f"no means of site '{site}' were collected; collect(model, rows, sites=['{site}']) reads them"
            )
        return self._filled(self.outputs[site])

    def _filled(self, mean: Float[Tensor, "layer position channel"]) -> Float[Tensor, "layer position channel"]:
        seen = (self.count > 0)[:, None]
        share = (self.count / self.count.sum().clamp(min=1))[:, None]
        return torch.where(seen, mean, (mean * share).sum(1, keepdim=True))

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
def collect(
    model: ChatModel, rows: Sequence[Row], what: str = "activation statistics", sites: Sequence[Site | str] = ()
) -> Moments:
    """Streams the moments of every unit over these rows, padding left out.

    Args:
        model: the model to look at.
        rows: prompts, with responses when the RESPONSE class is wanted.
        what: label of the progress bar.
        sites: of 'resid', 'attn' and 'mlp', those whose means are wanted beside the units'.
    """
    outputs = [s for s in map(parse_site, sites) if s not in (Site.NEURON, Site.HEAD)]
    moments = Moments.zeros(model, outputs)
    batches = model.batches(rows, share_prefix=False)
    for _, batch in progress(batches, what):
        with batches.room():
            moments = moments.merged(_of_batch(model, batch, outputs))
    return moments


def _of_batch(model: ChatModel, batch: Batch, outputs: Sequence[Site]) -> Moments:
    out = Moments.zeros(model, outputs)
    where = {p: ((batch.positions == p) & (batch.mask == 1)) for p in Position}
    hooks = [
        (kind.hook(layer), _reader(out, layer, kind, where))
        for kind in model.grid.kinds
        for layer in range(model.grid.n_layers)
    ]
    hooks += [
        (site.hook(layer), _averager(out.outputs[site][layer], where))
        for site in outputs
        for layer in range(model.grid.n_layers)
    ]
    with model.bridge.hooks(fwd_hooks=hooks):
        model.logits(batch)
    out.count += torch.tensor([float(where[p].sum()) for p in Position], dtype=torch.float64)
    return out


def _averager(means: Float[Tensor, "position channel"], where: dict[Position, Tensor]):
    """Writes the means of one pass."""

    def hook(activation: Tensor, hook) -> None:
        for position, mask in where.items():
            if mask.any():
                means[position] = activation[mask].double().mean(0).cpu()

    return hook


def _reader(moments: Moments, layer: int, kind: Kind, where: dict[Position, Tensor]):
    def hook(activation: Tensor, hook) -> None:
        flat = activation.flatten(2)
        for position, mask in where.items():
            moments.update(layer, kind, position, flat[mask], float(moments.count[position]))

    return hook
