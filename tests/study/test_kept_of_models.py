"""What a study keeps of its models in `record.json`: how much memory there was, and what a reader must know."""

from __future__ import annotations

from pathlib import Path

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.save import save_model
from ssah_lens.config import study_config
from ssah_lens.show.report import _provenance
from ssah_lens.study.record import RunFolder
from ssah_lens.study.runner import Study


def test_memory_that_ran_out_and_notes_are_kept(micro: ChatModel, tmp_path: Path):
    """A resumed run begins with the batches that the first one ended with, so that it repeats it."""
    folder = save_model(micro, tmp_path / "micro")
    config = study_config(model=str(folder), dtype="bfloat16", system="Be brief.")
    run = RunFolder.open(tmp_path / "run", config)
    told: list[str] = []
    study = Study(config, run, told.append)
    given, other = study.given, ChatModel.load(str(folder))
    study.__dict__["aligned"] = other
    assert (given.room.share, given.system) == (1.0, "Be brief.")
    given.room.share = 0.25
    study.release("align")
    assert other.room.share == 0.25 and run.record["batch_share"] == 0.25
    resumed = Study(config, RunFolder.open(tmp_path / "run", config), told.append)
    assert resumed.given.room.share == 0.25
    [notes] = run.record["notes"].values()
    assert "'Be brief.'" in notes and "bfloat16, which keeps 8 significant bits" in notes
    assert sum("significant bits" in line for line in told) == 2
    shown = str(_provenance(run.record))
    assert "8 significant bits" in shown and "batch_share" in shown.replace(" ", "_")
