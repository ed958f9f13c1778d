"""A run folder: stages that are whole or absent, the configuration, and where everything came from."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ssah_lens.config import StudyConfig, to_toml
from ssah_lens.errors import BadInput
from ssah_lens.results import SCHEMA, Results

PACKAGES = ("ssah-lens", "torch", "transformer-lens", "transformers", "numpy", "scipy", "statsmodels", "safetensors")
_TYPES = {f.name: f.type for f in fields(Results)}


class RunFolder:
    """One study's folder (DESIGN.md, 'A run folder').

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
        try:
            (path / "stages").mkdir(parents=True, exist_ok=True)
            text, file = to_toml(config), path / "config.toml"
            if file.is_file() and file.read_text(encoding="utf-8") != text:
                raise BadInput(f"'{path}' holds a run with another configuration; choose another --out, or delete it")
            folder.write("config.toml", text)
        except OSError as e:
            raise BadInput(f"output folder '{path}' cannot be used: {e.strerror}; choose another --out") from e
        record = folder.record
        if record.get("schema", SCHEMA) != SCHEMA:
            raise BadInput(f"'{path}' was written by schema {record['schema']}, this is {SCHEMA}; choose another --out")
        return folder

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """A folder that holds a run already.

        Raises:
            BadInput: it does not.
        """
        if not (path / "config.toml").is_file():
            raise BadInput(f"'{path}' is not a run folder (no config.toml); make one with: ssah-lens study --out DIR")
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One run at a time."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as e:
            raise BadInput(f"another run is using '{self.path}'; wait for it or choose another --out") from e
        try:
            yield
        finally:
            lock.release()

    def write(self, name: str, text: str) -> Path:
        """Writes a text file through a temporary name."""
        file = self.path / name
        partial = file.with_name(file.name + ".partial")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(file)
        except OSError as e:
            partial.unlink(missing_ok=True)
            raise BadInput(f"cannot write '{file}': {e.strerror}; finished stages are kept") from e
        return file

    # ---- stages

    def done(self, stage: str) -> bool:
        return (self.path / "stages" / f"{stage}.json").is_file()

    def save_stage(self, stage: str, result: Any) -> None:
        """Stores a stage's result; from now on the stage is done."""
        text = TypeAdapter(_type(stage)).dump_json(result, indent=1).decode()
        self.write(f"stages/{stage}.json", text)
        shutil.rmtree(self.path / "stages" / f"{stage}.parts", ignore_errors=True)

    def part(self, stage: str, name: str, kind: Any, make: Callable[[], Any]) -> Any:
        """A part of a long stage: read back when an interrupted run kept it, else made and kept."""
        file, adapter = self.path / "stages" / f"{stage}.parts" / f"{name}.json", TypeAdapter(kind)
        if file.is_file():
            return adapter.validate_json(file.read_text(encoding="utf-8"))
        made = make()
        file.parent.mkdir(exist_ok=True)
        self.write(str(file.relative_to(self.path)), adapter.dump_json(made).decode())
        return made

    def load_stage(self, stage: str) -> Any:
        """A finished stage's result, or None."""
        if not self.done(stage):
            return None
        file = self.path / "stages" / f"{stage}.json"
        try:
            return TypeAdapter(_type(stage)).validate_json(file.read_text(encoding="utf-8"))
        except ValidationError as e:
            raise BadInput(f"'{file}' is damaged; delete it to run the stage again") from e

    def results(self) -> Results:
        """All finished stages together, without the scorecard."""
        config = self.config
        stages = {s: self.load_stage(s) for s in ("align", "refusal", "units", "ablate", "freeze")}
        return Results(model=config.model, profile=config.profile, **stages)

    @property
    def config(self) -> StudyConfig:
        import tomllib

        return StudyConfig(**tomllib.loads((self.path / "config.toml").read_text(encoding="utf-8")))

    # ---- provenance

    @property
    def record(self) -> dict[str, Any]:
        file = self.path / "record.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

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
    folder.write("results.json", TypeAdapter(Results).dump_json(results, indent=1).decode())


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
        "git": _git_revision(),
    }


def _git_revision() -> str | None:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _type(stage: str) -> Any:
    from ssah_lens import results

    return vars(results)[_TYPES[stage].split(" | ")[0]]
