"""What a profile leaves out is said, with the command that runs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ssah_lens.config import study_config
from ssah_lens.results import Results
from ssah_lens.show.report import html
from ssah_lens.study.plan import not_run
from ssah_lens.study.record import RunFolder


def test_the_quick_profile_says_how_to_run_the_direction(tmp_path: Path):
    folder = RunFolder.open(tmp_path / "quick", study_config())
    told = not_run(folder, "runs/quick")
    assert set(told) == {"H1, H2, H3", "H5 in every way of fine-tuning", "H6", "H7"}
    assert "not run in the quick profile" in told["H1, H2, H3"]
    command = "ssah-lens study --config runs/quick/config.toml --out runs/quick --stages direction,report"
    assert command in told["H1, H2, H3"]
    page = html(replace(Results(), not_run=not_run(folder)), {}, {})
    assert "H1, H2, H3:" in page and "--stages direction,report" in page
    for stage in ("direction", "tuning", "budget", "transfer"):
        folder.write(f"stages/{stage}.json", "{}")
    assert not_run(folder) == {}


def test_other_profiles_leave_nothing_out(tmp_path: Path):
    assert not_run(RunFolder.open(tmp_path / "standard", study_config(profile="standard"))) == {}
