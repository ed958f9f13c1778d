"""Scores to roles: rankings by hand, precedence, and that roles always divide all units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ssah_lens.errors import BadInput
from ssah_lens.score.base import Scores
from ssah_lens.score.roles import Sizes, assign, ranking, top_complex
from ssah_lens.units import Kind, Role, UnitGrid, UnitSet

GRID = UnitGrid(n_layers=2, d_mlp=5, n_heads=2, mlp_parameters=1, head_parameters=1, block_parameters=100)
ROW = UnitGrid(n_layers=1, d_mlp=5, n_heads=1, mlp_parameters=1, head_parameters=1, block_parameters=100)


def row(safety: list[float], utility: list[float], signed: bool = False) -> Scores:
    """Five neurons and a head that matters to nothing."""
    head = np.zeros((1, 1))
    return Scores(
        {Kind.MLP: np.array([safety]), Kind.HEAD: head}, {Kind.MLP: np.array([utility]), Kind.HEAD: head}, signed
    )


def neurons(units: UnitSet) -> list[int]:
    return np.flatnonzero(units.masks[Kind.MLP][0]).tolist()


@st.composite
def scores(draw) -> Scores:
    values = st.floats(-5, 5, width=16)
    parts = [{k: draw(hnp.arrays(np.float64, (2, GRID.width(k)), elements=values)) for k in Kind} for _ in range(2)]
    return Scores(*parts, signed=draw(st.booleans()))


share = st.floats(0, 1)


@given(scores(), share, share, share)
def test_roles_are_disjoint_and_cover_all_units(given_scores, ru, scu, ucu):
    roles = assign(GRID, given_scores, Sizes(ru, scu, ucu))
    assert set(roles) == set(Role)
    for kind in Kind:
        assert (sum(units.masks[kind].astype(int) for units in roles.values()) == 1).all()
    for kind in Kind:  # sizes before precedence: RU whole, the others at most theirs
        n = 2 * GRID.width(kind)
        assert roles[Role.RU].masks[kind].sum() == round(ru * n)
        assert roles[Role.SCU].masks[kind].sum() <= round(scu * n)
        assert roles[Role.UCU].masks[kind].sum() <= round(ucu * n)


@given(scores(), share, share, share)
def test_precedence_is_ru_scu_ucu_cu(given_scores, ru, scu, ucu):
    """Each role is what it would be alone, less what comes before it."""
    roles = assign(GRID, given_scores, Sizes(ru, scu, ucu))
    alone = lambda **sizes: assign(GRID, given_scores, Sizes(**{"ru": 0, "scu": 0, "ucu": 0, **sizes}))
    assert roles[Role.RU] == alone(ru=ru)[Role.RU]
    assert roles[Role.SCU] == alone(scu=scu)[Role.SCU] - roles[Role.RU]
    assert roles[Role.UCU] == alone(ucu=ucu)[Role.UCU] - roles[Role.SCU] - roles[Role.RU]


def test_rankings_by_hand():
    # Spread of I_S is 2 (0 4 0 4 2 -> variance 3.2), of I_U the same numbers halved: one scale after division.
    s = row([0.0, 4.0, 0.0, 4.0, 2.0], [0.0, 0.0, 2.0, 2.0, 1.0])
    u = np.array([0, 2, 0, 2, 1]) / np.std([0, 2, 0, 2, 1])
    v = np.array([0, 0, 2, 2, 1]) / np.std([0, 0, 2, 2, 1])
    np.testing.assert_allclose(ranking(s, Role.SCU)[Kind.MLP][0], u - v)
    np.testing.assert_allclose(ranking(s, Role.UCU)[Kind.MLP][0], v - u)
    np.testing.assert_allclose(ranking(s, Role.RU)[Kind.MLP][0], -(u + v))


def test_roles_by_hand():
    #      neither  safety  utility  both  half
    s = row([0.0, 4.0, 0.0, 4.0, 2.0], [0.0, 0.0, 2.0, 2.0, 1.0])
    roles = assign(ROW, s, Sizes(ru=0.2, scu=0.2, ucu=0.2))
    assert {r: neurons(units) for r, units in roles.items()} == {
        Role.RU: [0], Role.SCU: [1], Role.UCU: [2], Role.CU: [3, 4]
    }  # fmt: skip


def test_the_scale_of_a_score_does_not_matter():
    s, u = [0.1, 4.0, 0.3, 3.0, 2.0], [0.2, 0.1, 2.0, 2.5, 1.0]
    big = row([1000 * x for x in s], u)
    for role in (Role.SCU, Role.UCU, Role.RU):
        np.testing.assert_allclose(ranking(big, role)[Kind.MLP], ranking(row(s, u), role)[Kind.MLP])


def test_a_score_that_knows_importance_cuts_redundant_units_from_it():
    scores = row([0.0, 3, 1, 2, 5], [0.0, 1, 4, 2, 1], signed=True)
    importance = {Kind.MLP: np.array([[9.0, 8, 7, 0, 6]]), Kind.HEAD: np.zeros_like(scores.safety[Kind.HEAD])}
    assert neurons(assign(ROW, replace(scores, importance=importance), Sizes(0.2, 0, 0))[Role.RU]) == [3]
    assert neurons(assign(ROW, scores, Sizes(0.2, 0, 0))[Role.RU]) == [0]


def test_signed_scores_are_redundant_by_magnitude():
    s, u = [-4.0, 0.5, 3.0, -3.0, 4.0], [0.1, 0.1, 0.2, 0.1, 0.1]
    assert neurons(assign(ROW, row(s, u, signed=True), Sizes(0.2, 0, 0))[Role.RU]) == [1]
    assert neurons(assign(ROW, row(s, u, signed=False), Sizes(0.2, 0, 0))[Role.RU]) == [0]
    # and their sign counts for SCU: a unit that works against refusing is no safety unit
    assert neurons(assign(ROW, row(s, u, signed=True), Sizes(0, 0.2, 0))[Role.SCU]) == [4]


def test_overlap_goes_to_the_earlier_role():
    s = row([0.0, 4.0, 0.0, 4.0, 2.0], [0.0, 0.0, 2.0, 2.0, 1.0])
    roles = assign(ROW, s, Sizes(ru=1, scu=1, ucu=1))
    assert neurons(roles[Role.RU]) == [0, 1, 2, 3, 4] and not any(
        neurons(roles[r]) for r in (Role.SCU, Role.UCU, Role.CU)
    )
    roles = assign(ROW, s, Sizes(ru=0.4, scu=0.6, ucu=1))
    # RU: 0 (sum 0), then 1, 2 and 4 all tie near 2 units of spread; SCU ranks 1 first, UCU takes what is left.
    assert neurons(roles[Role.RU])[0] == 0 and len(neurons(roles[Role.RU])) == 2 and neurons(roles[Role.CU]) == []


def test_ties_go_to_the_lower_index():
    s = row([1.0] * 5, [1.0] * 5)  # no spread at all
    roles = assign(ROW, s, Sizes(ru=0.4, scu=0.6, ucu=0.8))
    assert {r: neurons(units) for r, units in roles.items()} == {
        Role.RU: [0, 1], Role.SCU: [2], Role.UCU: [3], Role.CU: [4]
    }  # fmt: skip


def test_complex_units_have_no_ranking():
    with pytest.raises(BadInput, match="what the other roles leave"):
        ranking(row([0.0] * 5, [0.0] * 5), Role.CU)


@pytest.mark.parametrize("sizes", [(-0.1, 0, 0), (0, 1.1, 0), (0, 0, float("nan"))])
def test_sizes_are_shares(sizes):
    with pytest.raises(BadInput, match="allowed is 0 to 1"):
        Sizes(*sizes)


def test_top_complex_by_hand():
    s = row([0.0, 4.0, 0.0, 4.0, 2.0], [0.0, 0.0, 2.0, 2.0, 0.5])
    roles = assign(ROW, s, Sizes(ru=0.2, scu=0.2, ucu=0.2))
    assert neurons(roles[Role.CU]) == [3, 4]
    assert neurons(top_complex(ROW, s, roles, 0.2)) == [4]  # 4 leans more to safety than 3
    assert neurons(top_complex(ROW, s, roles, 0.4)) == [3, 4]
    assert neurons(top_complex(ROW, s, roles, 0.0)) == []


@given(scores(), share, share, share, share)
def test_top_complex_is_the_best_of_cu_and_no_more(given_scores, ru, scu, ucu, top):
    roles = assign(GRID, given_scores, Sizes(ru, scu, ucu))
    got, rank = top_complex(GRID, given_scores, roles, top), ranking(given_scores, Role.SCU)
    assert got - roles[Role.CU] == UnitSet.empty(GRID)
    for kind in Kind:
        inside = got.masks[kind]
        left = roles[Role.CU].masks[kind] & ~inside
        assert inside.sum() == min(round(top * inside.size), roles[Role.CU].masks[kind].sum())
        if inside.any() and left.any():
            assert rank[kind][inside].min() >= rank[kind][left].max()


def test_units_that_were_not_measured_are_in_no_role_but_cu():
    """NaN: neither counted in the scale nor ever ranked."""
    nan = float("nan")
    got = row([4, nan, 0, -4, nan], [0, nan, 2, 0, 1])
    same = row([4, 0, 0, -4, 0], [0, 0, 2, 0, 1])
    rank = ranking(got, Role.SCU)[Kind.MLP][0]
    assert (np.flatnonzero(rank == -np.inf) == [1, 4]).all()
    assert rank[0] == pytest.approx(4 / np.std([4, 0, -4])) and np.isfinite(ranking(same, Role.SCU)[Kind.MLP]).all()
    for sizes in (Sizes(1, 0, 0), Sizes(0, 1, 0), Sizes(0, 0, 1)):
        roles = assign(ROW, got, sizes)
        assert neurons(roles[Role.CU]) == [1, 4]


def test_a_kind_of_which_nothing_was_measured_is_ranked_nowhere():
    nothing = Scores(
        {k: np.full((1, ROW.width(k)), np.nan) for k in Kind}, {k: np.zeros((1, ROW.width(k))) for k in Kind}, True
    )
    assert all((ranking(nothing, Role.RU)[k] == -np.inf).all() for k in Kind)
