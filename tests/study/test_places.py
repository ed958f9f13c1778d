"""Sets of units by where they are."""

from __future__ import annotations

import numpy as np
import pytest

from ssah_lens.errors import BadInput
from ssah_lens.study.places import place, scattered
from ssah_lens.units import Kind, UnitGrid

GRID = UnitGrid(6, 10, 4, 30, 60, 2000)


@pytest.mark.parametrize(
    "text,neurons,heads,blocks",
    [("heads 1-2", 0, 8, {1, 2}), ("neurons 5-5", 10, 0, {5}), ("blocks 0-2", 30, 12, {0, 1, 2})],
)
def test_a_place_is_all_units_of_its_kinds_and_blocks(text: str, neurons: int, heads: int, blocks: set[int]):
    units = place(GRID, text)
    assert (units.masks[Kind.MLP].sum(), units.masks[Kind.HEAD].sum()) == (neurons, heads)
    assert {int(b) for k in Kind for b in np.flatnonzero(units.masks[k].any(1))} == blocks


@pytest.mark.parametrize(
    "text", ["heads", "heads 2-1", "heads 0-6", "experts 0-1", "heads -1-2", "heads 0-1 ", "x" * 90]
)
def test_what_is_no_place_is_refused(text: str):
    with pytest.raises(BadInput):
        place(GRID, text)


def test_its_control_is_as_many_of_each_kind_anywhere_else():
    units = place(GRID, "blocks 0-1")
    control = scattered(units, 0)
    assert not len(units & control), "two blocks of six leave room for it"
    assert all(control.masks[k].sum() == units.masks[k].sum() for k in Kind)
    assert control == scattered(units, 0) != scattered(units, 1)
    most = place(GRID, "blocks 0-3")
    assert len(scattered(most, 0) & most) == len(most) - (len(place(GRID, "blocks 4-5")))
