"""Stability on the planted model: what is rescored, how it is compared, what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted import Planted, plant, prompts

from ssah_lens.config import UnitsConfig
from ssah_lens.score import score
from ssah_lens.score.base import Calibration
from ssah_lens.score.roles import Sizes, assign
from ssah_lens.study.stability import bootstrap, half, kept_role, stability
from ssah_lens.study.units import calibrate
from ssah_lens.units import Kind, Role, UnitSet, UnitTable


@pytest.fixture(scope="module")
def planted(make_tokenizer) -> Planted:
    return plant(make_tokenizer)


@pytest.fixture(scope="module")
def data(planted: Planted) -> Calibration:
    return calibrate(planted.model, None, prompts(True, 16), prompts(False, 16), UnitsConfig(score="attribution"), 0)


@pytest.fixture(scope="module")
def table(planted: Planted, data: Calibration) -> UnitTable:
    found = score("attribution")(planted.model, data)
    roles = assign(planted.model.grid, found, Sizes(ru=0.2, scu=0.05, ucu=0.05))
    return UnitTable(planted.model.grid, found.safety, found.utility, roles, {"score": "attribution", "signed": True})


def test_samples_are_what_they_are_called(planted: Planted, data: Calibration):
    ids = lambda rows: [tuple(r.ids) for r in rows]
    first, other = (half(planted.model, data, i) for i in (0, 1))
    assert sorted(ids(first.safety) + ids(other.safety)) == sorted(ids(data.safety))
    drawn = bootstrap(planted.model, data, 3)
    assert len(drawn.safety) == len(data.safety) and set(ids(drawn.safety)) < set(ids(data.safety))
    answer_of = dict(zip(ids(data.safety), ids(data.fulfilling), strict=True))
    assert ids(drawn.fulfilling) == [answer_of[r] for r in ids(drawn.safety)]
    tokens = sum(len(r.ids) for r in drawn.safety)
    assert drawn.safety_moments.count.sum() == tokens != data.safety_moments.count.sum()


def test_confidence_is_the_share_of_reruns_by_hand(table: UnitTable):
    unit = (Kind.MLP, 2, 5)
    move = lambda role: replace(table, roles={**table.roles, **moved(table, unit, role)})
    was = next(r for r, u in table.roles.items() if u.masks[unit[0]][unit[1:]])
    other = next(r for r in Role if r is not was)
    got = kept_role(table, [table, move(other), move(other), table])
    assert got[Kind.MLP][2, 5] == 0.5 and got[Kind.MLP].min() == 0.5 and got[Kind.HEAD].min() == 1


def moved(table: UnitTable, unit, role: Role) -> dict[Role, UnitSet]:
    one = UnitSet.of(table.grid, [unit])
    return {r: (u | one if r is role else u - one) for r, u in table.roles.items()}


def test_a_stable_score_keeps_its_roles_and_a_killed_run_resumes(planted, data, table, tmp_path: Path, monkeypatch):
    again, found = stability(planted.model, data, table, 2, tmp_path / "runs")
    names = ["bootstrap 0", "bootstrap 1", "first half", "other half", "other seed", "half against half"]
    assert list(found.compared) == names and found.reruns == 2
    assert found.compared["other seed"].held["SCU"].value > 0.9  # attribution's I_S draws nothing
    assert found.confidence["SCU"] > 0.6 > found.compared["bootstrap 0"].chance["SCU"]
    for kind in Kind:
        assert set(np.unique(again.confidence[kind])) <= {0.0, 0.5, 1.0}
    path = tmp_path / "units.parquet"
    again.save(path)
    back = UnitTable.load(path)
    np.testing.assert_array_equal(back.confidence[Kind.MLP], again.confidence[Kind.MLP])
    assert "confidence" in back.frame() and "confidence" not in table.frame()
    monkeypatch.setattr("ssah_lens.study.stability.score", None)  # nothing is scored again
    assert stability(planted.model, data, table, 2, tmp_path / "runs")[1] == found
