"""`ssah-lens direction`: stage `direction` alone, in a run folder of its own, on the user's prompts if given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from ssah_lens.chat.prompts import PromptSet, instructions, pairs
from ssah_lens.config import StudyConfig
from ssah_lens.errors import BadInput
from ssah_lens.results import DirectionReport
from ssah_lens.study.behaviour import find_refusal_tokens
from ssah_lens.study.direction import direction_report, study_direction
from ssah_lens.study.direction_data import direction_data
from ssah_lens.study.record import RunFolder
from ssah_lens.study.runner import Study
from ssah_lens.study.stages import report

STAGE = "direction"
OPENINGS = 48
"""Train prompts on each side whose answers say how refusals open, as in the study."""


def run_direction(
    config: StudyConfig,
    out: Path,
    harmful: PromptSet | None = None,
    harmless: PromptSet | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> DirectionReport:
    """The direction from shipped train prompts, measured on the user's prompts (or the shipped test prompts).

    An interrupted run goes on in the same folder; a finished one is read back and drawn again.

    Args:
        config: the model, its counterpart if there is one, and sizes.
        out: run folder: `results.json`, `figures/`, `report.html`.
        harmful, harmless: the user's test prompts instead of the shipped ones.
        note: told what is under way.

    Raises:
        BadInput: a folder that cannot be written, or that holds a run with other settings or other prompts.
    """
    folder = RunFolder.open(out, config)
    with folder.locked():
        _same_prompts(folder, harmful, harmless)
        study = Study(config, folder, note)
        study.prepare(working=not folder.done(STAGE))
        if not folder.done(STAGE):
            folder.save_stage(STAGE, _measured(study, harmful, harmless))
        report(study)
    return direction_report(folder.load_stage(STAGE), str(out))


def _measured(study: Study, harmful: PromptSet | None, harmless: PromptSet | None):
    config, seed = study.config, study.config.seed
    keep = study.folder.parts(STAGE)
    train = pairs("train")[0].sample(OPENINGS, seed), instructions("train").sample(OPENINGS, seed)
    tokens = keep("openings", tuple[int, ...], lambda: tuple(find_refusal_tokens(study.aligned, *train, seed)))
    data = direction_data(config.direction, config.measure, seed, harmful, harmless)
    return study_direction(
        study.aligned,
        study.unaligned,
        data,
        tokens,
        config.direction,
        seed,
        config.measure.judge,
        study.note,
        keep,
    )


def _same_prompts(folder: RunFolder, *given: PromptSet | None) -> None:
    """The prompts are no part of the configuration: their hash stands in the record."""
    said = lambda p: f"{p.system}\2{p.text}" if p.system else p.text
    sides = ["\0".join(map(said, prompts or ())) for prompts in given]
    found = hashlib.sha256("\1".join(sides).encode()).hexdigest()
    if folder.record.get("prompts", found) != found:
        raise BadInput(f"'{folder.path}' holds a run with other prompts; choose another --out, or delete it")
    folder.update_record(prompts=found)
