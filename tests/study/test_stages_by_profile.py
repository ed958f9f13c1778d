"""Which stages a profile runs when none are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssah_lens.config import PROFILES, study_config, to_toml
from ssah_lens.study import record, runner
from ssah_lens.study.plan import MINUTES


def test_the_quick_profile_leaves_the_long_proof_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ran: list[str] = []
    monkeypatch.setattr(runner, "_run_stage", lambda study, stage: ran.append(stage))
    runner.run_study(study_config(), tmp_path / "quick")
    assert not {"scores", "stability", "contexts", "sufficiency"} & set(ran) and {"units", "ablate"} <= set(ran)
    ran.clear()
    named = ["align", "refusal", "scores"]  # nothing was really done above
    runner.run_study(study_config(), tmp_path / "quick", named)
    assert ran == named
    ran.clear()
    runner.run_study(study_config(profile="standard"), tmp_path / "standard")
    assert ran == list(runner.STAGES)


def test_every_stage_has_a_budget_and_a_result():
    for profile in PROFILES:
        assert set(MINUTES[profile]) == set(runner.STAGES)
    assert set(record.STAGES) == set(runner.STAGES) - {"report"}


@pytest.mark.parametrize("stage", runner.STAGES)
def test_every_stage_has_a_body_of_its_name(stage: str):
    assert runner._body(stage).__name__ == stage


def test_the_grid_is_in_the_longer_profiles_and_can_be_written(tmp_path: Path):
    quick, standard = study_config(), study_config(profile="standard")
    assert quick.ablate.doses == () and quick.ablate.modes == ("mean", "zero")
    assert standard.ablate.doses[0] == 0.001 and standard.ablate.doses[-1] == 0.2
    file = tmp_path / "again.toml"
    file.write_text(to_toml(standard))
    assert study_config(file) == standard
