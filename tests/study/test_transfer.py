"""Role moves counted by hand, and that a table cut at its own sizes is itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssah_lens.errors import BadInput
from ssah_lens.score.base import Scores
from ssah_lens.score.roles import Sizes, assign, scores_of
from ssah_lens.study.transfer import moves, recut, transfer
from ssah_lens.units import Kind, Role, UnitGrid, UnitSet, UnitTable

GRID = UnitGrid(2, 40, 4, 30, 60, 20000)


def table(seed: int, sizes: Sizes, signed: bool, layers: range | None = None, told: bool = True) -> UnitTable:
    rng = np.random.default_rng(seed)
    safety, utility = ({k: rng.normal(size=(2, GRID.width(k))) for k in Kind} for _ in range(2))
    roles = assign(GRID, Scores(safety, utility, signed, layers), sizes)
    said = {"signed": signed, "layers": [layers.start, layers.stop] if layers else None} if told else {}
    return UnitTable(GRID, safety, utility, roles, {"score": "mask", "model": "m", **said})


@given(
    st.integers(0, 10**6), st.floats(0, 0.5), st.floats(0, 0.4), st.floats(0, 0.4), st.booleans(), st.booleans(),
    st.sampled_from([None, range(1, 2)]),
)  # fmt: skip
def test_a_table_cut_at_its_own_sizes_is_itself(seed, ru, scu, ucu, signed, told, layers):
    """Signed or not, restricted to layers or not; a file that does not say how it was cut tells it by its roles."""
    t = table(seed, Sizes(ru, scu, ucu), signed, layers, told=told or layers is not None)
    report = transfer(t, t)
    for role in Role:
        assert recut(t, t)[role] == t.roles[role]
        if len(t.roles[role]):
            assert report.held[role].value == 1
    shares = {r: len(t.roles[r]) / GRID.n_units for r in Role}
    assert report.matrix == {b: {a: shares[b] if a == b else 0 for a in Role} for b in Role}


@pytest.mark.parametrize("signed", [True, False])
def test_a_file_that_does_not_say_is_cut_as_its_roles_were(signed):
    """Another sample's scores too, which alone would not tell (`stability` cuts them so)."""
    old, said = (table(0, Sizes(0.3, 0.1, 0.1), signed, told=told) for told in (False, True))
    other = table(1, Sizes(0, 0, 0), signed)
    assert scores_of(old).signed is signed
    assert recut(other, old) == recut(other, said)


def test_sizes_are_those_before_whatever_the_other_table_says():
    """The paper's Figure 11 cut SCU at 1.30% before and 0.45% after: most of that 'transfer' is the cut."""
    before, after = table(0, Sizes(0.2, 0.1, 0.1), True), table(0, Sizes(0.1, 0.025, 0.3), True)
    got = transfer(before, after)
    assert got.held[Role.SCU].value == got.held[Role.RU].value == 1
    other = recut(table(1, Sizes(0.4, 0.4, 0), False), before)
    for kind in Kind:
        sizes = {r: int(u.masks[kind].sum()) for r, u in before.roles.items()}
        assert {r: int(u.masks[kind].sum()) for r, u in other.items()} == sizes


def test_moves_by_hand():
    """Four SCU: two stay, one turns CU, one RU."""
    of = lambda *units: UnitSet.of(GRID, [(Kind.MLP, 0, j) for j in units])
    before = {Role.SCU: of(0, 1, 2, 3), Role.RU: of(4, 5), Role.UCU: of()}
    after = {Role.SCU: of(0, 1, 6, 7), Role.RU: of(3, 5), Role.UCU: of()}
    everything = UnitSet(GRID, {k: np.ones((2, GRID.width(k)), dtype=bool) for k in Kind})
    for roles in (before, after):
        roles[Role.CU] = everything - roles[Role.SCU] - roles[Role.RU]
    got = moves(GRID, before, after)
    assert got.counts[Role.SCU] == {"SCU": 2, "CU": 1, "RU": 1, "UCU": 0}
    assert got.counts[Role.CU] == {"SCU": 2, "UCU": 0, "CU": 80, "RU": 0}
    assert got.matrix[Role.SCU][Role.SCU] == pytest.approx(2 / 88)
    assert (got.held[Role.SCU].value, got.held[Role.SCU].n) == (0.5, 4) and got.held[Role.RU].value == 0.5
    assert got.chance[Role.SCU] == pytest.approx(4 / 80)  # of neurons only: no SCU is a head
    assert "UCU" not in got.held
    assert sum(v for row in got.matrix.values() for v in row.values()) == pytest.approx(1)


def test_a_planted_move_is_found_and_the_null_is_smaller():
    """After: the scores of five SCU neurons are gone. Null: the same scores with a little noise."""
    before = table(3, Sizes(0.2, 0.1, 0.1), True)
    lost = np.argwhere(before.roles[Role.SCU].masks[Kind.MLP])[:5]
    safety = {k: v.copy() for k, v in before.safety.items()}
    for layer, j in lost:
        safety[Kind.MLP][layer, j] = before.utility[Kind.MLP][layer, j]
    after = UnitTable(GRID, safety, before.utility, before.roles, before.provenance)
    noise = np.random.default_rng(0)
    jittered = {k: v + noise.normal(scale=0.01, size=v.shape) for k, v in before.safety.items()}
    null = UnitTable(GRID, jittered, before.utility, before.roles, before.provenance)
    got = transfer(before, after, null)
    n = len(before.roles[Role.SCU])
    assert got.counts["SCU"]["SCU"] == n - 5 and got.null.counts["SCU"]["SCU"] >= n - 1


def test_tables_that_cannot_be_compared():
    before = table(0, Sizes(0.2, 0.1, 0.1), True)
    other = UnitTable(GRID, before.safety, before.utility, before.roles, {"score": "wifv"})
    with pytest.raises(BadInput, match="scored by 'mask' and 'wifv'"):
        transfer(before, other)
    small = UnitGrid(1, 40, 4, 30, 60, 20000)
    values = {k: np.zeros((1, small.width(k))) for k in Kind}
    roles = assign(small, Scores(values, values, True), Sizes(0, 0, 0))
    with pytest.raises(BadInput, match="different shape"):
        transfer(before, UnitTable(small, values, values, roles, {"score": "mask"}))


def test_importance_is_compared_with_importance_alone():
    """A file of an older version has none: beside a newer one its redundant units would be cut by another rule."""
    old = table(0, Sizes(0.2, 0.3, 0.1), signed=True)
    new = replace(old, importance={k: np.abs(v) for k, v in old.safety.items()})
    with pytest.raises(BadInput, match="importance"):
        transfer(new, old)
    again = transfer(old, new)
    assert all(held.value == 1 for held in again.held.values())
