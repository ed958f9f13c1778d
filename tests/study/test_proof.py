"""The ablation grid on the planted model: roles, modes, doses, kinds of request, other sets, kept parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planted import Planted, plant, prompts

from ssah_lens.chat.promptset import PromptSet
from ssah_lens.config import AblateConfig, UnitsConfig
from ssah_lens.intervene.resample import Bank
from ssah_lens.results import AblateResult
from ssah_lens.score.base import Calibration
from ssah_lens.study.ablate import Bench, Replacement, ablate_sets
from ssah_lens.study.behaviour import yardstick
from ssah_lens.study.commands import run_ablate
from ssah_lens.study.keep import keep_in
from ssah_lens.study.proof import by_group, dose_response, on_sets
from ssah_lens.study.units import calibrate
from ssah_lens.units import Kind, Role, UnitSet, UnitTable

CONFIG = AblateConfig(controls=2, score_controls=4, modes=("mean", "zero", "resample"))


@pytest.fixture(scope="module")
def planted(make_tokenizer) -> Planted:
    return plant(make_tokenizer)


@pytest.fixture(scope="module")
def data(planted: Planted) -> Calibration:
    return calibrate(planted.model, None, prompts(True, 16), prompts(False, 16), UnitsConfig(score="exact"), 0)


def labelled(found: PromptSet) -> PromptSet:
    kinds = [("question", "a"), ("typo", "b")]
    marked = (replace(p, phrasing=kinds[i % 2][0], category=kinds[i % 2][1]) for i, p in enumerate(found))
    return PromptSet(found.name, tuple(marked))


@pytest.fixture(scope="module")
def bench(planted: Planted, data: Calibration, tmp_path_factory) -> Bench:
    y = yardstick(planted.model, labelled(prompts(True, 20, 5)), prompts(False, 8, 5), data.refusal_tokens,
                  max_new_tokens=3, choices=9)  # fmt: skip
    bank = Bank.collect(planted.model, [*data.safety, *data.utility], 0, tokens=24)
    keep = keep_in(tmp_path_factory.mktemp("parts"), "run")
    return Bench(planted.model, y, Replacement(data.moments, bank), 0, keep)


@pytest.fixture(scope="module")
def found(bench: Bench, planted: Planted) -> AblateResult:
    return grid(bench, planted)


def grid(bench: Bench, planted: Planted) -> AblateResult:
    sets = {"SCU": planted.safety, "UCU": planted.utility}
    put = bench.put
    return ablate_sets(bench.model, sets, put.moments, bench.y, CONFIG, 0, bank=put.bank, keep=bench.keep)


def test_every_mode_takes_the_planted_refusal_and_its_twins_do_not(found: AblateResult):
    assert found.baseline.harmful.refused.value == 1
    for mode in CONFIG.modes:
        assert found.find("SCU", mode).behaviour.harmful.refused.value <= 0.5, mode
        assert found.find("UCU", mode).behaviour.harmful.refused.value >= 0.9
    assert found.find("SCU").behaviour.harmful.refused.value == 0
    assert [c.behaviour.harmful.refused.value for c in found.controls("SCU")] == [1, 1]
    assert len(found.score_controls["SCU"]) == 4 and min(found.score_controls["SCU"]) > 0
    tasks = found.find("SCU").behaviour.utility.choices_by_task
    assert sum(e.n for e in tasks.values()) == 9 and found.find("SCU", "zero").behaviour.utility.choices_by_task is None


def test_finished_parts_are_not_measured_again(bench: Bench, planted: Planted, found: AblateResult, monkeypatch):
    for name in ("behave", "refusal_scores"):
        monkeypatch.setattr(f"ssah_lens.study.ablate.{name}", None)
    assert grid(bench, planted) == found


def test_doses_rise_and_carry_their_twins(bench: Bench, planted: Planted):
    ranking = {k: planted.safety.masks[k].astype(float) for k in Kind}
    none, many = dose_response(bench, ranking, (0.01, 0.12))
    assert [d.size.n for d in (none, many)] == [2, 23]  # of 160 neurons and 32 heads
    assert many.behaviour.harmful.refused.value == 0 and none.behaviour.harmful.refused.value == 1
    assert len(many.controls) == 3 and len(many.score_controls) == 10
    assert many.behaviour.utility.choices is not None and many.controls[0].utility.choices is None
    assert min(many.score_controls) > many.behaviour.refusal_score.value


def test_groups_and_other_sets(bench: Bench, planted: Planted, found: AblateResult):
    groups = by_group(found, bench.y.harmful)
    assert [(g.by, g.name, g.baseline.n) for g in groups] == [
        ("phrasing", "question", 10), ("phrasing", "typo", 10), ("category", "a", 10), ("category", "b", 10)
    ]  # fmt: skip
    assert all((g.baseline.value, g.ablated.value, g.control.value) == (1, 0, 1) for g in groups)
    (other,) = on_sets(bench, planted.safety, [prompts(True, 9, 8)])
    rates = [o.refused.value for o in (other.baseline, other.ablated, other.control)]
    assert rates == [1, 0, 1] and other.baseline.refused.n == 9


def test_the_command_ablates_by_resampling(planted: Planted, tmp_path):
    """On the user's prompts; what is put in comes from the shipped ones, which this model answers."""
    grid = planted.model.grid
    values = {k: planted.safety.masks[k].astype(float) for k in Kind}
    rest = UnitSet(grid, {k: ~m for k, m in planted.safety.masks.items()})
    roles = {Role.SCU: planted.safety, Role.UCU: UnitSet.empty(grid), Role.RU: UnitSet.empty(grid), Role.CU: rest}
    UnitTable(grid, values, values, roles, {"model": "planted"}).save(tmp_path / "units.parquet")
    told: list[str] = []
    got = run_ablate(
        planted.model,
        tmp_path / "units.parquet",
        [Role.SCU],
        "resample",
        prompts(True, 9, 8),
        prompts(False, 9, 8),
        AblateConfig(controls=1, score_controls=1),
        3,
        0,
        told.append,
    )
    assert got.mode == "resample" and got.share.n == 9 and not told
    assert got.ablated.harmful.refused.value == 0 and got.controls[0].harmful.refused.value == 1
    assert len(got.score_controls) == 1
