"""Interventions as a sweep takes them: many edits at one site of one layer, each of one unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.sites import Site
from ssah_lens.units import Kind

HEADS = 0.25
"""Of a random sample at most this share are heads, which are few: a plain sample would hold hardly any."""


@dataclass(frozen=True)
class Edits:
    """Interventions at one site of one layer, each on one unit.

    Attributes:
        site: where.
        layer: which block.
        units: neuron or head of each intervention; zeros for sites that are one vector.
        window: True = this position is edited, counted from the end (the last column is the decision position); None
            edits the positions that `sweep` was asked for.
    """

    site: Site
    layer: int
    units: Int[np.ndarray, " edit"]
    window: Bool[np.ndarray, "edit pos"] | None = None

    def __len__(self) -> int:
        return len(self.units)

    def of(self, part: Int[np.ndarray, " chosen"]) -> Edits:
        """Some of them."""
        return Edits(self.site, self.layer, self.units[part], None if self.window is None else self.window[part])

    def reaches(self, last: int, n_pos: int) -> Int[np.ndarray, " edit"]:
        """Positions from the end that must be run for each edit.

        Args:
            last: positions that are edited where there is no window.
            n_pos: positions that there are.
        """
        if self.window is None:
            return np.full(len(self), min(last, n_pos))
        first = np.where(self.window.any(1), self.window.argmax(1), self.window.shape[1] - 1)
        return np.minimum(self.window.shape[1] - first, n_pos)


def all_units(
    model: ChatModel, kinds: Sequence[Kind] | None = None, layers: Sequence[int] | None = None
) -> list[Edits]:
    """One intervention for every unit, in the order of kinds, layers and indices; all kinds and layers by default."""
    kinds = model.grid.kinds if kinds is None else kinds
    check_layers(model, layers)
    layers = range(model.grid.n_layers) if layers is None else layers
    return [Edits(Site.of(k), i, np.arange(model.grid.width(k))) for k in kinds for i in layers]


def check_layers(model: ChatModel, layers: Sequence[int] | None) -> None:
    """Raises BadInput where one of them is not in the model, or there is none; None stands for all."""
    if layers is None:
        return
    allowed = f"the model has layers 0-{model.grid.n_layers - 1}"
    if next(iter(layers), None) is None:
        raise BadInput(f"no layers are given: {allowed}")
    outside = next((i for i in layers if not 0 <= i < model.grid.n_layers), None)  # a range may be endless
    if outside is not None:
        raise BadInput(f"no layer {outside}: {allowed}")


def some_units(model: ChatModel, n: int | None, seed: int, layers: Sequence[int] | None = None) -> list[Edits]:
    """All units of these layers, or a random sample of them, by kind and layer.

    Args:
        model: the model.
        n: how many; None for all.
        seed: of the sample.
        layers: which layers; all by default.

    Raises:
        BadInput: fewer than two, or a layer outside the model.
    """
    everything = all_units(model, layers=layers)
    if n is None:
        return everything
    if n < 2:
        raise BadInput(f"a sample of {n} units is too small: allowed are 2 and more")
    by_kind = {k: [(e.layer, u) for e in everything if e.site is Site.of(k) for u in e.units.tolist()] for k in Kind}
    share = HEADS if by_kind[Kind.MLP] else 1.0
    n_heads = min(len(by_kind[Kind.HEAD]), max(1, round(share * n)))
    counts = {Kind.HEAD: n_heads, Kind.MLP: min(len(by_kind[Kind.MLP]), n - n_heads)}
    rng = np.random.default_rng(seed)
    out = []
    for kind in Kind:
        chosen = [by_kind[kind][i] for i in np.sort(rng.choice(len(by_kind[kind]), counts[kind], replace=False))]
        for layer in sorted({layer for layer, _ in chosen}):
            out.append(Edits(Site.of(kind), layer, np.array([u for at, u in chosen if at == layer])))
    return out
