"""A run folder holds whole stages or none."""

import json
from pathlib import Path

import pytest

from ssah_lens.config import study_config
from ssah_lens.errors import BadInput
from ssah_lens.results import AlignResult, Training
from ssah_lens.stats import Estimate
from ssah_lens.study.record import RunFolder, write_results

RESULT = AlignResult("m", None, Training((1.0, 0.5), 8), Estimate(0.1, None, 0.3, 20), None)


def test_a_stage_comes_back_as_it_was(tmp_path: Path):
    folder = RunFolder.open(tmp_path, study_config())
    assert not folder.done("align") and folder.load_stage("align") is None
    folder.save_stage("align", RESULT)
    assert folder.done("align") and RunFolder.existing(tmp_path).load_stage("align") == RESULT
    write_results(folder, folder.results())
    assert json.loads((tmp_path / "results.json").read_text())["align"]["refused_before"]["n"] == 20


def test_a_half_written_stage_is_not_a_stage(tmp_path: Path):
    folder = RunFolder.open(tmp_path, study_config())
    (tmp_path / "stages" / "align.json.partial").write_text('{"model": "m"')
    assert not folder.done("align")


def test_a_part_of_a_long_stage_is_made_once_and_goes_when_the_stage_is_whole(tmp_path: Path):
    folder, made = RunFolder.open(tmp_path, study_config()), []

    def make() -> AlignResult:
        made.append(1)
        return RESULT

    assert [folder.part("align", "first", AlignResult, make) for _ in range(2)] == [RESULT, RESULT] and made == [1]
    assert not folder.done("align")
    folder.save_stage("align", RESULT)
    assert [p.name for p in (tmp_path / "stages").iterdir()] == ["align.json"]


def test_a_damaged_stage_says_what_to_do(tmp_path: Path):
    folder = RunFolder.open(tmp_path, study_config())
    (tmp_path / "stages" / "align.json").write_text('{"model": "m"')
    with pytest.raises(BadInput, match="damaged or another version's; delete it"):
        folder.load_stage("align")


def test_another_configuration_is_refused(tmp_path: Path):
    RunFolder.open(tmp_path, study_config(seed=1))
    with pytest.raises(BadInput, match="another configuration"):
        RunFolder.open(tmp_path, study_config(seed=2))
    RunFolder.open(tmp_path, study_config(seed=1))


def test_two_runs_in_one_folder_are_refused(tmp_path: Path):
    folder = RunFolder.open(tmp_path, study_config())
    with folder.locked(), pytest.raises(BadInput, match="another run is using"):
        with RunFolder.open(tmp_path, study_config()).locked():
            pass
    with folder.locked():
        pass


def test_another_schema_is_refused(tmp_path: Path):
    RunFolder.open(tmp_path, study_config()).update_record(schema=99)
    with pytest.raises(BadInput, match="schema 99"):
        RunFolder.open(tmp_path, study_config())
