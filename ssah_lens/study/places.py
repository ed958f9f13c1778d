"""Units by where they are, whatever they score: 'heads 10-19', 'neurons 0-4', 'blocks 12-14'."""

from __future__ import annotations

import re

import numpy as np

from ssah_lens.config import PLACE
from ssah_lens.errors import BadInput
from ssah_lens.units import Kind, UnitGrid, UnitSet

NAMES = {Kind.HEAD: "heads", Kind.MLP: "neurons"}
"""What units of a kind are called in a place."""
WHAT = {name: (kind,) for kind, name in NAMES.items()} | {"blocks": tuple(Kind)}


def place(grid: UnitGrid, text: str) -> UnitSet:
    """All units of these kinds in these blocks, both ends included.

    Args:
        grid: the shape of the model.
        text: 'heads A-B', 'neurons A-B' or 'blocks A-B'.

    Raises:
        BadInput: another form, blocks that the model does not have, or a kind that it has no units of.
    """
    found = re.fullmatch(PLACE, text)
    if found is None:
        raise BadInput(f"no place '{text[:40]}': allowed are 'heads A-B', 'neurons A-B' and 'blocks A-B'")
    first, last = int(found[2]), int(found[3])
    if not first <= last < grid.n_layers:
        raise BadInput(f"'{text}': the model has blocks 0-{grid.n_layers - 1}")
    masks = {k: np.zeros((grid.n_layers, grid.width(k)), dtype=bool) for k in Kind}
    for kind in WHAT[found[1]]:
        masks[kind][first : last + 1] = True
    units = UnitSet(grid, masks)
    if not len(units):
        raise BadInput(f"'{text}': the model has no such units")
    return units


def scattered(units: UnitSet, seed: int) -> UnitSet:
    """As many random units of each kind over the whole depth, not of the set where they fit: a place's own control."""
    rng = np.random.default_rng(seed)
    masks = {}
    for kind, mask in units.masks.items():
        order = rng.permutation(mask.size)
        outside_first = order[np.argsort(mask.ravel()[order], kind="stable")]
        masks[kind] = np.zeros(mask.shape, dtype=bool)
        masks[kind].ravel()[outside_first[: mask.sum()]] = True
    return UnitSet(units.grid, masks)
