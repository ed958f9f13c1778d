"""A disk that is full or read-only, a pipe that nobody reads, and faults of our own: what the user is told."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.save import save_model
from ssah_lens.config import study_config
from ssah_lens.errors import BadInput, Fault
from ssah_lens.study.record import RunFolder
from ssah_lens.units import Kind, Role, UnitSet, UnitTable

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@contextmanager
def full_disk(n_bytes: int) -> Iterator[None]:
    """No file grows beyond this inside: writing fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def table(model: ChatModel) -> UnitTable:
    values = {k: np.zeros((model.grid.n_layers, model.grid.width(k))) for k in Kind}
    everything = UnitSet(model.grid, {k: np.ones_like(v, dtype=bool) for k, v in values.items()})
    roles = {r: everything if r is Role.CU else UnitSet.empty(model.grid) for r in Role}
    return UnitTable(model.grid, values, values, roles, {})


# ---- full


def test_a_units_file_is_whole_or_not_there(micro: ChatModel, tmp_path: Path):
    with full_disk(1000), pytest.raises(BadInput, match="cannot be written"):
        table(micro).save(tmp_path / "u.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_whole_or_not_there(micro: ChatModel, tmp_path: Path):
    with full_disk(2000), pytest.raises(BadInput, match="nothing was left there"):
        save_model(micro, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("made", [True, False], ids=["folder there", "new folder"])
def test_patching_leaves_all_its_files_or_none(made: bool, micro_folder: Path, tmp_path: Path, lens: Callable):
    """The picture fits, the page of several megabytes does not."""
    out = tmp_path / "out"
    if made:
        out.mkdir()
    words = ["patch", micro_folder, "--clean", "bake it", "--corrupted", "make it", "--out", out, "--json", "--quiet"]
    with full_disk(1_000_000):
        said = lens(*words)
    assert said.code == 2 and "File too large" in said.err and said.err.count("\n") == 1, said.err
    assert said.out == "" and out.exists() == made and list(tmp_path.rglob("*")) == ([out] if made else [])
    said = lens(*words)
    assert said.code == 0 and {p.name for p in out.iterdir()} == {"patching.json", "patching.png", "patching.html"}


def test_a_report_is_whole_or_the_old_one_stays(tmp_path: Path, lens: Callable):
    RunFolder.open(tmp_path / "run", study_config())
    assert lens("report", tmp_path / "run").code == 0
    before = (tmp_path / "run" / "report.html").read_bytes()
    with full_disk(3000):
        said = lens("report", tmp_path / "run", "--quiet")
    assert said.code == 2 and "File too large" in said.err and said.err.count("\n") == 1, said.err
    assert (tmp_path / "run" / "report.html").read_bytes() == before
    assert not list((tmp_path / "run").rglob("*partial*"))


def streams(words: list[str], **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ssah_lens", *words]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, timeout=120, **options)


@pytest.mark.parametrize("words", [["models", "--json"], ["models"]])
def test_an_answer_that_cannot_be_written_is_told(words: list[str]):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        said = streams(words, stdout=full)
    assert said.returncode == 2, said.stderr
    assert said.stderr == "ssah-lens: cannot use the output: No space left on device; finished stages are kept\n"


def test_a_pipe_that_nobody_reads_is_no_error():
    """`ssah-lens models | head -1`"""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        said = streams(["models", "--json"], stdout=writer)
    finally:
        os.close(writer)
    assert (said.returncode, said.stderr) == (0, "")


def test_a_closed_output_is_no_error():
    said = subprocess.run(
        ["sh", "-c", 'exec "$0" -m ssah_lens models --json >&-', sys.executable],
        cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, timeout=120,
    )  # fmt: skip
    assert (said.returncode, said.stderr) == (0, "")


# ---- read-only


MANY = """
import contextlib, io, json, sys
from ssah_lens.cli import main
said = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["ssah-lens", *words, "--quiet"]
    with contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as e:
            said.append([e.code, err.getvalue()])
print(json.dumps(said))
"""


def without_privileges() -> list[str]:
    """What makes the system mind the modes of files, also for the superuser."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("the superuser may write everywhere, and there is no setpriv")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def test_a_folder_that_is_read_only_is_told(micro: ChatModel, micro_folder: Path, tmp_path: Path):
    closed = tmp_path / "closed"
    closed.mkdir()
    RunFolder.open(closed / "run", study_config())
    secret = tmp_path / "secret.txt"
    secret.write_text("hello\n")
    secret.chmod(0o000)
    table(micro).save(tmp_path / "u.parquet")
    model, tune = str(micro_folder), tmp_path / "tune.jsonl"
    tune.write_text('{"prompt": "a", "response": "b"}\n')
    folders = [f for f in (closed, *closed.rglob("*")) if f.is_dir()]
    told = {
        ("refusal", model, "--harmful", str(secret)): "secret.txt' is not readable",
        ("study", "--model", model, "--config", str(secret), "--out", "s"): "secret.txt' is not readable",
        ("align", model, "--out", str(closed / "a")): "cannot be made: Permission denied; choose another --out",
        ("units", model, "--out", str(closed / "u.parquet")): "cannot be written: Permission denied",
        ("finetune", model, "--data", str(tune), "--out", str(closed / "t")): "cannot be made: Permission denied",
        ("patch", model, "--clean", "a b", "--corrupted", "a c", "--out", str(closed)): "Permission denied",
        ("study", "--model", model, "--out", str(closed / "s")): "cannot be used: Permission denied",
        ("report", str(closed / "run")): "Permission denied",
    }
    for folder in folders:
        folder.chmod(0o555)
    try:
        got = subprocess.run(
            [*without_privileges(), sys.executable, "-c", MANY, json.dumps(list(told))],
            cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert got.returncode == 0, got.stderr
    for (words, says), (code, error) in zip(told.items(), json.loads(got.stdout), strict=True):
        assert code == 2 and says in error and error.count("\n") == 1, (words, error)
    assert {p.name for p in tmp_path.iterdir()} == {"closed", "secret.txt", "u.parquet", "tune.jsonl"}


# ---- faults of our own


@pytest.mark.parametrize("fault", [KeyError("x"), Fault("a promise is broken"), RecursionError("too deep")])
def test_a_fault_of_ours_says_how_to_report_it(fault: Exception, lens: Callable, monkeypatch: pytest.MonkeyPatch):
    from ssah_lens.chat import built_in

    def fail(name: str) -> bool:
        raise fault

    monkeypatch.setattr(built_in, "is_cached", fail)
    said = lens("models")
    assert said.code == 1 and said.out == "" and said.err.count("\n") == 1
    assert "a fault of ours" in said.err and "please report it" in said.err and "SSAH_LENS_DEBUG=1" in said.err
    assert str(fault).strip("'") in said.err and "Traceback" not in said.err
    monkeypatch.setenv("SSAH_LENS_DEBUG", "1")
    with pytest.raises(type(fault)):
        lens("models")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_memory_that_runs_out_is_told(error: Exception, lens: Callable, monkeypatch: pytest.MonkeyPatch):
    from ssah_lens.chat import built_in

    def fail(name: str) -> bool:
        raise error

    monkeypatch.setattr(built_in, "is_cached", fail)
    said = lens("models")
    assert said.code == 2 and "out of memory" in said.err and said.err.count("\n") == 1
