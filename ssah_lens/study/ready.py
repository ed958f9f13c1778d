"""An aligned model and its units for a notebook's first cell: made once by the quick study's own stages, then kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from ssah_lens.chat.built_in import cache_dir
from ssah_lens.chat.model import ChatModel
from ssah_lens.config import StudyConfig, study_config, to_toml
from ssah_lens.study.record import RunFolder
from ssah_lens.study.runner import Study, run_study
from ssah_lens.units import UnitTable

Note = Callable[[str], None]


def aligned(model: str = "smollm2-135m", run: str | Path | None = None, note: Note = print) -> ChatModel:
    """An aligned model: the one named, when it refuses already; else one that the study's first stage aligned.

    The first call takes some minutes (about four for smollm2-135m on two CPU cores) and shows how far it is; later ones
    read what it kept.

    Args:
        model: built-in name, folder, .gguf file or hub id; with `run`, what that run studied counts.
        run: a run folder (`ssah-lens study --out DIR`); None for one in the user's cache folder.
        note: told of the steps.

    Raises:
        BadInput: no such model, or `run` is no run folder.
    """
    config, folder = _with_stages(model, run, ("align",), note)
    return Study(config, folder, note).aligned


def aligned_units(model: str = "smollm2-135m", run: str | Path | None = None, note: Note = print) -> UnitTable:
    """Scores and roles of that model's units; arguments as for `aligned`. The first call takes about five minutes."""
    _, folder = _with_stages(model, run, ("align", "refusal", "units"), note)
    return UnitTable.load(folder.path / "units.parquet")


def kept_run(config: StudyConfig) -> Path:
    """Where the cache keeps a run of this configuration; another version's settings get another folder."""
    key = hashlib.sha256(to_toml(config).encode()).hexdigest()[:8]
    return cache_dir() / "runs" / f"{Path(config.model).name}-{key}"


def _with_stages(
    model: str, run: str | Path | None, stages: tuple[str, ...], note: Note
) -> tuple[StudyConfig, RunFolder]:
    """The run folder, with these stages done."""
    config = study_config(model=model) if run is None else RunFolder.existing(Path(run)).config
    folder = RunFolder(kept_run(config) if run is None else Path(run))
    missing = [s for s in stages if not folder.done(s)]
    if missing:
        run_study(config, folder.path, missing, note)
    return config, folder
