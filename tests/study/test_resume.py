"""A run folder that was killed, lost a file, is in use, or belongs to something else: taken up rightly or refused."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import filelock  # noqa: F401 (a forked child imports nothing)
import pytest

from ssah_lens.config import study_config
from ssah_lens.errors import BadInput
from ssah_lens.results import SCHEMA, AlignResult, SizeChoice, Training
from ssah_lens.stats import Estimate
from ssah_lens.study.parts import Parts
from ssah_lens.study.record import RunFolder, environment, git_revision

ROOT = Path(__file__).parents[2]
TRAINED = AlignResult("m", None, Training((1.0, 0.5), 8), Estimate(0.1, None, 0.3, 20), None)


def opened(path: Path, **config) -> RunFolder:
    return RunFolder.open(path, study_config(**config))


# ---- parts


def test_a_part_is_made_once_and_comes_back_to_the_last_digit(tmp_path: Path):
    keep, made = Parts(tmp_path / "parts"), []

    def make() -> SizeChoice:
        made.append(1)
        return SizeChoice(0.1 + 0.2, 1 / 3, math.pi * 1e-17)

    first, second = keep("SCU-0.01", SizeChoice, make), keep("SCU-0.01", SizeChoice, make)
    assert first == second and made == [1]
    assert Parts(None)("SCU-0.01", SizeChoice, make) == first and made == [1, 1]


def test_a_number_that_is_not_finite_comes_back_as_it_was(tmp_path: Path):
    keep = Parts(tmp_path)
    kept = [keep("x", SizeChoice, lambda: SizeChoice(0.1, math.nan, -math.inf)) for _ in range(2)]
    assert all(math.isnan(c.refused) and c.answer_loss == -math.inf for c in kept)
    json.loads((tmp_path / "x.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_half_written_part_is_not_a_part(tmp_path: Path):
    keep = Parts(tmp_path)
    (tmp_path / ".x.json.partial").write_text('{"share": 0.1')
    assert keep.load("x", SizeChoice) is None
    (tmp_path / "x.json").write_text('{"share": 0.1')
    with pytest.raises(BadInput, match="damaged or another version's; delete it, what it held is then made again"):
        keep.load("x", SizeChoice)


def test_working_state_goes_when_the_part_is_kept(tmp_path: Path):
    keep = Parts(tmp_path)
    state = keep.working("full-0")
    state.mkdir(parents=True)
    (state / "checkpoint.safetensors").write_bytes(b"x")
    keep.save("full-0", SizeChoice(0.1, 0.2, 0.3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full-0.json"]


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path):
    folder = opened(tmp_path)
    for name in ("stages/.ablate.json.partial", ".aligned-abc/model.safetensors", "stages/align.parts/before.json",
                 "stages/freeze.parts/full-0.json", "figures/.a.png.partial"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    folder.save_stage("align", TRAINED)
    (tmp_path / "stages/align.parts").mkdir()
    with folder.locked():
        folder.tidy()
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert left == [".lock", "config.toml", "stages/align.json", "stages/freeze.parts/full-0.json"]


# ---- what belongs to the run


def test_a_folder_of_another_schema_is_refused_with_the_reason(tmp_path: Path):
    opened(tmp_path).update_record(schema=SCHEMA + 98, versions={"ssah-lens": "7.0"})
    (tmp_path / "config.toml").write_text("a_later_key = 1\n")
    with pytest.raises(BadInput, match=f"schema {SCHEMA + 98}, this version reads {SCHEMA}: go on with ssah-lens 7.0"):
        opened(tmp_path)


def test_a_configuration_is_compared_by_what_it_says(tmp_path: Path):
    """A folder whose file leaves out what is the default (as one of an older version does) goes on."""
    opened(tmp_path, seed=3)
    (tmp_path / "config.toml").write_text("seed = 3\n")
    assert opened(tmp_path, seed=3).config == study_config(seed=3)
    with pytest.raises(BadInput, match="another configuration"):
        opened(tmp_path, seed=4)


@pytest.mark.parametrize("text", ["{", "[1]", "null"])
def test_a_damaged_record_is_refused(tmp_path: Path, text: str):
    opened(tmp_path)
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(BadInput, match="record.json' is damaged"):
        opened(tmp_path)


def test_the_record_says_which_code_it_was(tmp_path: Path):
    found = environment()
    assert found["schema"] == SCHEMA and found["versions"]["torch"][0].isdigit()
    git = lambda *words: subprocess.run(["git", *words], cwd=tmp_path, capture_output=True, check=True)
    git("init")
    file = tmp_path / "ours.py"
    file.write_text("x = 1\n")
    git("add", "ours.py")
    git("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-m", "first")
    clean = git_revision(file)
    assert re.fullmatch("[0-9a-f]{12}", clean)
    file.write_text("x = 2\n")
    assert git_revision(file) == f"{clean}-dirty"
    installed = tmp_path / "site-packages" / "ours.py"
    installed.parent.mkdir()
    installed.write_text("x = 1\n")
    assert git_revision(installed) is None


# ---- in use, full, read-only

CHILD = """
import sys
from pathlib import Path
from ssah_lens.config import study_config
from ssah_lens.study.record import RunFolder

with RunFolder(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path: Path):
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", CHILD, str(tmp_path)]
    first = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env={"PYTHONPATH": str(ROOT)})
    assert first.stdout.readline() == "locked\n"
    opened(tmp_path)
    with pytest.raises(BadInput, match="another run is using .* wait for it or choose another"):
        with RunFolder(tmp_path).locked():
            pass
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=20)
    deadline = time.monotonic() + 5
    with RunFolder(tmp_path).locked():
        assert time.monotonic() < deadline


def test_a_disk_that_is_full_says_so_and_keeps_what_is_there(tmp_path: Path):
    """A limit on the size of files stands for the full disk: the write fails half way."""
    folder = opened(tmp_path)
    folder.save_stage("align", TRAINED)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code = (
        "import resource, sys; from pathlib import Path; from ssah_lens.study.parts import Parts\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try: Parts(Path(sys.argv[1]) / 'stages' / 'units.parts')('base', list[float], lambda: [0.123456789] * 99)\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60,
                          env={"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.stdout.startswith("BadInput") and "File too large" in done.stdout, done.stderr
    assert "make room or mend it, then give the same command again" in done.stdout
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be used: .*; choose another --out"):
        with RunFolder(tmp_path / "file" / "run").locked():
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is played, which root alone may")
def test_a_read_only_folder_says_so(tmp_path: Path):
    """Nobody may write there; root could, so a child process becomes nobody."""
    for part in (tmp_path, *tmp_path.parents[: len(tmp_path.relative_to(Path(tempfile.gettempdir())).parts) - 1]):
        part.chmod(0o755)
    opened(tmp_path / "run")
    (tmp_path / "run").chmod(0o555)
    said, say = os.pipe()
    if not os.fork():
        os.setuid(65534)
        try:
            with RunFolder(tmp_path / "run").locked():
                os.write(say, b"locked")
        except Exception as e:
            os.write(say, f"{type(e).__name__} {e}".encode())
        os._exit(0)
    os.wait()
    assert re.match("BadInput output folder .* cannot be used: Permission denied; choose", os.read(said, 999).decode())
