"""A killed run takes up where it was and ends with the same bits; a checkpoint that cannot be used is refused."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import python

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.save import save_model
from ssah_lens.errors import BadInput
from ssah_lens.train.checkpoint import Checkpoints
from ssah_lens.train.freeze import FrozenSlices, other_slices, owned_slices
from ssah_lens.train.loop import TrainSettings, Watch, train
from ssah_lens.units import Kind, UnitSet

TEN = TrainSettings(steps=10, batch_size=2, lr=1e-2)
UNITS = [(Kind.MLP, 0, 3), (Kind.MLP, 1, 5), (Kind.HEAD, 1, 0)]


class Killed(Exception):
    pass


@pytest.fixture
def fresh(make_llama, make_tokenizer):
    """Builds the same model again and again."""

    def make(dtype: torch.dtype = torch.float32) -> ChatModel:
        tokenizer = make_tokenizer()
        return ChatModel(make_llama(tokenizer).to(dtype), tokenizer, "fresh")

    return make


def rows(model: ChatModel, word: str = "bread"):
    prompts = [f"How do I bake {word}?", "Hi", "Why not"]
    return model.rows(prompts, [model.response_tokens(a) for a in ("Sure, here is how.", "No", "Ask the user")])


def killer(at: int) -> Watch:
    def look() -> dict[str, float]:
        look.n += 1
        if look.n > at:
            raise Killed
        return {"n": look.n}

    look.n = 0
    return Watch(1, look)


def same(a: ChatModel, b: ChatModel) -> bool:
    pairs = zip(a.plain.parameters(), b.plain.parameters(), strict=True)
    return all(torch.equal(p.detach().view(torch.uint8), q.detach().view(torch.uint8)) for p, q in pairs)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pick", [None, owned_slices, other_slices])
def test_a_killed_run_ends_with_the_same_bits(fresh, tmp_path: Path, optimizer, dtype, pick):
    """Killed in step 8, resumed from step 6."""
    settings = replace(TEN, optimizer=optimizer)

    def run(model: ChatModel, watch: Watch | None, checkpoints: Checkpoints | None):
        frozen = FrozenSlices(pick(model.anatomy, UnitSet.of(model.grid, UNITS))) if pick else None
        return train(model, rows(model), settings, frozen, watch=watch, checkpoints=checkpoints)

    unbroken, broken, resumed = fresh(dtype), fresh(dtype), fresh(dtype)
    expected = run(unbroken, None, None)
    with pytest.raises(Killed):
        run(broken, killer(8), Checkpoints(tmp_path, every=3))
    torch.manual_seed(99)
    got = run(resumed, None, Checkpoints(tmp_path, every=3))
    assert same(unbroken, resumed) and not same(unbroken, broken)
    assert got.losses == expected.losses and got.sha256 == expected.sha256


def test_the_curve_is_taken_up_too(fresh, tmp_path: Path):
    with pytest.raises(Killed):
        model = fresh()
        train(model, rows(model), TEN, watch=killer(8), checkpoints=Checkpoints(tmp_path, every=3))
    model, steps = fresh(), []
    watch = Watch(1, lambda: steps.append(1) or {"n": 0})
    got = train(model, rows(model), TEN, watch=watch, checkpoints=Checkpoints(tmp_path, every=3))
    assert [step for step, _ in got.curve] == list(range(11)) and len(steps) == 4
    assert [seen["n"] for _, seen in got.curve] == [1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0]


CHILD = """
import os, signal, sys
sys.path.append("tests")  # of the helpers that the module below imports
from pathlib import Path
from ssah_lens.chat.model import ChatModel
from ssah_lens.train.checkpoint import Checkpoints
from ssah_lens.train.loop import TrainSettings, Watch, train
from tests.train.test_checkpoint import TEN, rows

model = ChatModel.load(sys.argv[1])
looks = []
def look():
    looks.append(1)
    if len(looks) > 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return {}
train(model, rows(model), TEN, watch=Watch(1, look), checkpoints=Checkpoints(Path(sys.argv[2]), 3))
"""


def test_a_process_that_was_killed(micro: ChatModel, tmp_path: Path):
    """SIGKILL leaves no time to tidy up: what is on the disk is a whole checkpoint."""
    folder = save_model(micro, tmp_path / "model")
    done = python("-c", CHILD, str(folder), str(tmp_path / "kept"))
    assert done.returncode == -signal.SIGKILL, done.stderr
    unbroken, resumed = ChatModel.load(str(folder)), ChatModel.load(str(folder))
    train(unbroken, rows(unbroken), TEN)
    got = train(resumed, rows(resumed), TEN, checkpoints=Checkpoints(tmp_path / "kept", 3))
    assert same(unbroken, resumed) and len(got.losses) == 10


def test_a_finished_run_is_not_trained_again(fresh, tmp_path: Path):
    first, again = fresh(), fresh()
    train(first, rows(first), TEN, checkpoints=Checkpoints(tmp_path, every=5))
    got = train(again, rows(again), TEN, checkpoints=Checkpoints(tmp_path, every=5))
    assert same(first, again) and len(got.losses) == 10


@pytest.mark.parametrize("what", ["data", "settings", "weights", "frozen"])
def test_a_checkpoint_of_another_run_is_refused(fresh, tmp_path: Path, what):
    model = fresh()
    train(model, rows(model), TEN, checkpoints=Checkpoints(tmp_path, every=5))
    other = fresh()
    data, settings, frozen = rows(other), TEN, None
    if what == "data":
        data = rows(other, "cake")
    elif what == "settings":
        settings = replace(TEN, lr=2e-2)
    elif what == "weights":
        with torch.no_grad():
            other.anatomy.blocks[0].down.weight[0, 0] += 1
    else:
        frozen = FrozenSlices(owned_slices(other.anatomy, UnitSet.of(other.grid, UNITS)))
    before = [p.detach().clone() for p in other.plain.parameters()]
    with pytest.raises(BadInput, match="belongs to another run"):
        train(other, data, settings, frozen, checkpoints=Checkpoints(tmp_path, every=5))
    assert all(torch.equal(p, q) for p, q in zip(before, other.plain.parameters(), strict=True))


def test_a_damaged_checkpoint_is_refused(fresh, tmp_path: Path):
    model, checkpoints = fresh(), Checkpoints(tmp_path, every=5)
    train(model, rows(model), TEN, checkpoints=checkpoints)
    checkpoints.file.write_bytes(checkpoints.file.read_bytes()[:-100])
    other = fresh()
    with pytest.raises(BadInput, match="is damaged .* delete it to start anew"):
        train(other, rows(other), TEN, checkpoints=checkpoints)


FULL_DISK = """
import resource, sys
sys.path.append("tests")
from pathlib import Path
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.save import save_model
from ssah_lens.errors import BadInput
from ssah_lens.train.adapters import AdapterSizes, save_tuned, with_adapter
from ssah_lens.train.checkpoint import Checkpoints
from ssah_lens.train.loop import train
from tests.train.test_checkpoint import TEN, rows

model, out = ChatModel.load(sys.argv[1]), Path(sys.argv[2])
checkpoints = Checkpoints(out / "kept", every=5)
train(model, rows(model), TEN, checkpoints=checkpoints)
whole = checkpoints.file.read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
adapted = with_adapter(model, "prefix", AdapterSizes())
for what, save in (
    ("checkpoint", lambda: train(model, rows(model), TEN, checkpoints=Checkpoints(out / "new", every=5))),
    ("model", lambda: save_tuned(model, out / "model")),
    ("adapter", lambda: save_tuned(adapted, out / "adapter")),
):
    try:
        save()
        print(what, "saved")
    except BadInput as e:
        print(what, "refused:", e)
print(sorted(p.relative_to(out).as_posix() for p in out.rglob("*")), checkpoints.file.read_bytes() == whole)
"""


def test_a_disk_that_fills_while_saving(micro: ChatModel, tmp_path: Path):
    """A limit on file size stands for a full disk: the write fails half way. Nothing half-written stays."""
    folder = save_model(micro, tmp_path / "model")
    done = python("-c", FULL_DISK, str(folder), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [[w, "refused:"] for w in ("checkpoint", "model", "adapter")]
    assert "none was kept" in lines[0] and "File too large" in lines[0]
    assert lines[3] == "['kept', 'kept/checkpoint.safetensors', 'new'] True"
