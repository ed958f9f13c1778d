"""A run folder: stages that are whole or absent, the configuration, and where everything came from."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

from ssah_lens.config import StudyConfig, study_config, to_toml
from ssah_lens.errors import BadInput
from ssah_lens.files import write_whole
from ssah_lens.results import SCHEMA, Results
from ssah_lens.study.parts import KEPT, Parts, read_result, write_result

PACKAGES = ("ssah-lens", "torch", "transformer-lens", "transformers", "numpy", "scipy", "statsmodels", "safetensors")
_TYPES = {f.name: f.type for f in fields(Results)}
STAGES = tuple(name for name in _TYPES if name not in ("schema", "model", "profile", "scorecard", "not_run"))
"""Those that leave a result."""
ALIGNED = "aligned"
"""Subfolder of the model that the study aligned itself."""


class RunFolder:
    """One study's folder.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path, config: StudyConfig) -> RunFolder:
        """Creates the folder, or continues one that was made with the same configuration.

        Raises:
            BadInput: not writable, another configuration, another schema.
        """
        folder = cls(path)
        folder._make()
        schema = folder.record.get("schema", SCHEMA)
        if schema != SCHEMA:
            began = folder.record.get("versions", {}).get("ssah-lens", "another version")
            raise BadInput(
                f"'{path}' was written by schema {schema}, this version reads {SCHEMA}: go on with ssah-lens {began}, "
                "which began it, or choose another --out"
            )
        if (path / "config.toml").is_file() and folder.config != config:
            raise BadInput(f"'{path}' holds a run with another configuration; choose another --out, or delete it")
        folder.write("config.toml", to_toml(config))
        return folder

    def _make(self) -> None:
        try:
            (self.path / "stages").mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise BadInput(f"output folder '{self.path}' cannot be used: {e.strerror}; choose another --out") from e

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """A folder that holds a run already.

        Raises:
            BadInput: it does not.
        """
        if not os.path.isfile(path / "config.toml"):
            raise BadInput(f"'{path}' is not a run folder (no config.toml); make one with: ssah-lens study --out DIR")
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One run at a time; the system lets go of the lock when a run is killed. Makes the folder."""
        from filelock import FileLock, Timeout

        self._make()
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as e:
            raise BadInput(f"another run is using '{self.path}'; wait for it or choose another --out") from e
        except OSError as e:
            raise BadInput(f"output folder '{self.path}' cannot be used: {e.strerror}; choose another --out") from e
        try:
            yield
        finally:
            lock.release()

    def tidy(self) -> None:
        """Clears away what a killed run left half-written, and the parts of stages that are whole. Needs the lock."""
        for file in self.path.rglob("*.partial"):
            file.unlink(missing_ok=True)
        for folder in self.path.glob(".aligned-*"):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in self.path.glob("stages/*.parts"):
            if self.done(folder.stem):
                self.parts(folder.stem).clear()

    def write(self, name: str, text: str) -> Path:
        """Writes a text file through a temporary name."""
        return write_whole(self.path / name, lambda partial: partial.write_text(text, encoding="utf-8"), KEPT)

    # ---- stages

    def done(self, stage: str) -> bool:
        return self._stage(stage).is_file()

    def parts(self, stage: str) -> Parts:
        """What is finished of a stage that is not."""
        return Parts(self.path / "stages" / f"{stage}.parts")

    def save_stage(self, stage: str, result: Any) -> None:
        """Stores a stage's result; from now on the stage is done."""
        write_result(self._stage(stage), result)
        self.parts(stage).clear()

    def part(self, stage: str, name: str, kind: Any, make: Callable[[], Any]) -> Any:
        """A part of a long stage: read back when an interrupted run kept it, else made and kept."""
        return self.parts(stage)(name, kind, make)

    def load_stage(self, stage: str) -> Any:
        """A finished stage's result, or None."""
        return read_result(self._stage(stage), _type(stage)) if self.done(stage) else None

    def lost(self, name: str, stage: str) -> BadInput:
        """What to say of a file of a finished stage that is gone or no longer what it was."""
        again = f"delete '{self._stage(stage)}' and give the same command again: the stage is then run anew"
        return BadInput(f"'{self.path / name}' is gone or is not what this run wrote; put it back, or {again}")

    def discard(self, name: str) -> None:
        """Removes a subfolder."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path / name)

    def _stage(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"

    def results(self) -> Results:
        """All finished stages together, without the scorecard."""
        config = self.config
        stages = {s: self.load_stage(s) for s in STAGES}
        return Results(model=config.model, profile=config.profile, **stages)

    @property
    def config(self) -> StudyConfig:
        return study_config(self.path / "config.toml")

    # ---- provenance

    @property
    def record(self) -> dict[str, Any]:
        file = self.path / "record.json"
        try:
            found = json.loads(file.read_bytes()) if file.is_file() else {}
        except (ValueError, RecursionError) as e:
            raise BadInput(f"'{file}' is damaged ({e}); choose another --out, or delete it") from e
        if not isinstance(found, dict):
            raise BadInput(f"'{file}' is damaged (no object of named values); choose another --out, or delete it")
        return found

    def update_record(self, **values: Any) -> None:
        """Adds to `record.json`."""
        self.write("record.json", json.dumps({**self.record, **values}, indent=1))

    def add_time(self, stage: str, seconds: float) -> None:
        """Seconds that a stage took."""
        self.update_record(seconds={**self.record.get("seconds", {}), stage: round(seconds, 1)})

    def log(self, event: str, **values: Any) -> None:
        """Appends a line to `log.jsonl`."""
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **values}) + "\n")


def write_results(folder: RunFolder, results: Results) -> None:
    """Writes `results.json`."""
    write_result(folder.path / "results.json", results)


def environment() -> dict[str, Any]:
    """Versions, machine and code that a result came from."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "schema": SCHEMA,
        "versions": versions,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "git": git_revision(),
    }


def git_revision(file: Path = Path(__file__)) -> str | None:
    """Commit of the checkout that holds this file, '-dirty' when changed; None for a file that git does not keep.

    An installed package may lie inside a repository of the user's own, whose revision says nothing of ours.
    """
    git = lambda *words: subprocess.run(["git", *words], cwd=file.parent, capture_output=True, text=True, timeout=5)
    try:
        if git("ls-files", "--error-unmatch", file.name).returncode != 0:
            return None
        return git("describe", "--always", "--dirty", "--abbrev=12").stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def _type(stage: str) -> Any:
    from ssah_lens import results

    return vars(results)[_TYPES[stage].split(" | ")[0]]
