"""Killed studies come out as unbroken ones; many more trials by hand: python tests/kill_trials.py --trials 40."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import python
from kill_trials import contents, differences

from ssah_lens.config import StudyConfig, study_config
from ssah_lens.errors import BadInput
from ssah_lens.study.record import RunFolder
from ssah_lens.study.runner import Study, run_study

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def trials(micro_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """One study let run and two that were killed once each: at a random time, and at a rename."""
    work = tmp_path_factory.mktemp("kill")
    words = ["--trials", "2", "--kills", "1", "--seed", "0", "--base", str(micro_base), "--work", str(work)]
    done = python(str(TESTS / "kill_trials.py"), *words, timeout=900)
    assert done.stdout, done.stderr[-3000:]
    return work, json.loads(done.stdout)


@pytest.fixture(scope="module")
def config(trials: tuple[Path, dict]) -> StudyConfig:
    return study_config(trials[0] / "study.toml")


@pytest.fixture
def finished(trials: tuple[Path, dict], tmp_path: Path) -> Path:
    """A copy of the finished run folder."""
    return Path(shutil.copytree(trials[0] / "unbroken", tmp_path / "run"))


def test_a_study_that_is_killed_ends_like_one_that_is_not(trials: tuple[Path, dict]):
    """The same command and seed give the same files to the last digit, times aside, in one go or in pieces."""
    answer = trials[1]
    assert answer["altered"] == 0, answer["runs"]
    assert answer["trials"] == answer["kills"] == 2 and answer["renames"] > 50


def test_every_stage_has_something_to_work_on(finished: Path):
    results = json.loads((finished / "results.json").read_text())
    assert results["align"]["training"]["losses"] and results["units"]["calibration"] >= 8
    assert {c["role"] for c in results["ablate"]["conditions"]} >= {"SCU", "CU", "RU"}
    assert [a["seed"] for a in results["freeze"]["arms"]] == [0, 0, 0]


def test_nothing_half_done_is_left(finished: Path):
    names = {p.name for p in finished.rglob("*")}
    assert not [n for n in names if n.endswith((".partial", ".parts")) or n.startswith(".aligned-")]


def test_the_comparison_sees_a_changed_digit(finished: Path, trials: tuple[Path, dict]):
    """The trials above could pass by comparing nothing."""
    expected, file = contents(trials[0] / "unbroken"), finished / "results.json"
    assert len(expected) > 20 and differences(contents(finished), expected) == []
    held = json.loads(file.read_text())
    held["freeze"]["arms"][0]["training"]["losses"][0] *= 1 + 1e-15
    file.write_text(json.dumps(held))
    (finished / "units.parquet").unlink()
    (finished / "new").write_text("")
    got = differences(contents(finished), expected)
    assert got == ["new: extra", "results.json: differs", "units.parquet: missing"]


def test_a_lost_file_of_a_finished_stage_is_missed(config: StudyConfig, finished: Path):
    """Going on without the aligned model would measure the unaligned one in its name."""
    (finished / "stages/freeze.json").unlink()
    (finished / "units.parquet").rename(finished / "elsewhere")
    with pytest.raises(BadInput, match=r"units.parquet' is gone or is not what .* delete '.*stages/units.json'"):
        run_study(config, finished)
    (finished / "elsewhere").rename(finished / "units.parquet")
    weights = finished / "aligned/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\0\0\x80?")
    with pytest.raises(BadInput, match=r"aligned' is gone or is not what .* delete '.*stages/align.json'"):
        run_study(config, finished)
    shutil.rmtree(finished / "aligned")
    with pytest.raises(BadInput, match=r"aligned' is gone or is not what"):
        run_study(config, finished)


def test_a_given_model_that_changed_is_refused(config: StudyConfig, finished: Path):
    """The second half of a run on other weights would be nobody's result."""
    folder = RunFolder(finished)
    known = folder.record["models"]
    folder.update_record(models={config.model: {**known[config.model], "config.json": "0" * 64}})
    (finished / "stages/refusal.json").unlink()
    with pytest.raises(BadInput, match="have changed since this run began; choose another --out"):
        run_study(config, finished)


def taken_up(config: StudyConfig, folder: RunFolder, working: bool) -> list[str]:
    """What a run says when it is taken up."""
    said: list[str] = []
    Study(config, folder, said.append).prepare(working)
    return said


def test_a_run_taken_up_elsewhere_says_so(config: StudyConfig, finished: Path):
    folder = RunFolder(finished)
    assert taken_up(config, folder, working=True) == []
    folder.update_record(versions={**folder.record["versions"], "torch": "1.0"}, batch_tokens=1)
    (said,) = taken_up(config, folder, working=True)
    assert "begun with torch 1.0 (now " in said and "batch_tokens 1 (now 4096)" in said
    assert taken_up(config, folder, working=False) == [], "nothing but the report is to be done"
    assert folder.record["versions"]["torch"] == "1.0"


def test_a_resumed_run_keeps_its_thread_count(config: StudyConfig, finished: Path):
    import torch

    before, folder = torch.get_num_threads(), RunFolder(finished)
    try:
        folder.update_record(threads=before + 1)
        taken_up(config, folder, working=True)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
