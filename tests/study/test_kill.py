"""Killed studies come out as unbroken ones; many more trials by hand: python tests/kill_trials.py --trials 40."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import micro_study
import pytest
from kill_trials import contents, differences

from ssah_lens.config import StudyConfig, study_config
from ssah_lens.errors import BadInput
from ssah_lens.study.runner import run_study

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config(micro_base: Path) -> StudyConfig:
    return study_config(micro_study.write_config(micro_base.parent / "study.toml", micro_base))


@pytest.fixture(scope="module")
def unbroken(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder. Leave it alone; copy it to change it."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run_study(config, folder)
    return folder


@pytest.fixture
def finished(unbroken: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unbroken, tmp_path / "run"))


def test_every_stage_has_something_to_work_on(unbroken: Path):
    results = json.loads((unbroken / "results.json").read_text())
    assert results["align"]["training"]["losses"] and results["units"]["calibration"] >= 8
    assert {c["role"] for c in results["ablate"]["conditions"]} >= {"SCU", "CU", "RU"}
    assert [a["seed"] for a in results["freeze"]["arms"]] == [0, 0, 0]


def test_the_same_command_gives_the_same_results(config: StudyConfig, unbroken: Path, tmp_path: Path):
    """To the last digit, times aside; nothing that was half done is left in either folder."""
    run_study(config, tmp_path / "again")
    assert differences(contents(tmp_path / "again"), contents(unbroken)) == []
    names = {p.name for p in unbroken.rglob("*")}
    assert not [n for n in names if n.endswith((".partial", ".parts")) or n.startswith(".aligned-")]


def test_a_study_that_is_killed_ends_like_one_that_is_not(micro_base: Path):
    words = [sys.executable, str(TESTS / "kill_trials.py"), "--trials", "3", "--seed", "7", "--base", str(micro_base)]
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    assert answer["trials"] == 3 and answer["kills"] >= 3 and answer["renames"] > 20 and answer["altered"] == 0


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
    from ssah_lens.study.record import RunFolder

    folder = RunFolder(finished)
    known = folder.record["models"]
    folder.update_record(models={config.model: {**known[config.model], "config.json": "0" * 64}})
    (finished / "stages/refusal.json").unlink()
    with pytest.raises(BadInput, match="have changed since this run began; choose another --out"):
        run_study(config, finished)


def test_a_run_taken_up_elsewhere_says_so(config: StudyConfig, finished: Path):
    from ssah_lens.study.record import RunFolder

    folder, notes = RunFolder(finished), []
    versions = {**folder.record["versions"], "torch": "1.0"}
    folder.update_record(versions=versions, batch_tokens=1)
    run_study(config, finished, note=notes.append)
    assert not [n for n in notes if "was begun with" in n], "nothing but the report was to do"
    (finished / "stages/freeze.json").unlink()
    run_study(config, finished, note=notes.append)
    (said,) = [n for n in notes if "was begun with" in n]
    assert "torch 1.0 (now " in said and "batch_tokens 1 (now 4096)" in said
    assert folder.record["versions"]["torch"] == "1.0"


def test_a_resumed_run_keeps_its_thread_count(config: StudyConfig, finished: Path):
    import torch

    from ssah_lens.study.record import RunFolder

    before = torch.get_num_threads()
    try:
        RunFolder(finished).update_record(threads=2)
        run_study(config, finished, ["report"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
