"""The finetune command's work on a micro model: what is reported, what is saved, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.chat.save import save_model
from ssah_lens.errors import BadInput
from ssah_lens.score.base import Scores
from ssah_lens.score.roles import Sizes, assign
from ssah_lens.show.terminal import safety_lost
from ssah_lens.stats import paired_difference
from ssah_lens.study import commands, finetune
from ssah_lens.study.finetune import FinetuneOptions, run_finetune
from ssah_lens.train.methods import METHODS
from ssah_lens.units import Kind, Role, UnitTable

DATA = PromptSet("tune", tuple(Prompt(f"Say {i}", f"{i} it is") for i in range(20)))


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch):
    """What is measured before and after is measured elsewhere; here it shall be quick."""
    monkeypatch.setattr(commands, "CHECK_PROMPTS", 3)
    monkeypatch.setattr(finetune, "CURVE_PROMPTS", 2)
    monkeypatch.setattr(finetune, "CURVE_TOKENS", 2)


@pytest.fixture
def units(micro: ChatModel, tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    values = [{k: rng.normal(size=(2, micro.grid.width(k))) for k in Kind} for _ in range(2)]
    roles = assign(micro.grid, Scores(*values, signed=True), Sizes(0.3, 0.2, 0.0))
    UnitTable(micro.grid, *values, roles, {"model": micro.name}).save(tmp_path / "u.parquet")
    return tmp_path / "u.parquet"


def run(model: ChatModel, out: Path, data: PromptSet = DATA, **options):
    notes = []
    return run_finetune(lambda: model, data, out, FinetuneOptions(**{"lr": 1e-2, **options}), notes.append)


@pytest.mark.parametrize(
    "before,after,warns",
    [(58, 30, True), (58, 57, False), (30, 58, False)],
)
def test_a_warning_needs_the_whole_interval(before: int, after: int, warns: bool):
    hits = lambda n: [i < n for i in range(60)]
    said = safety_lost(paired_difference(hits(before), hits(after)))
    assert said.startswith("warning") == warns == ("less safe" in said) and "n=60" in said


@pytest.mark.parametrize("method", METHODS)
def test_every_method_reports_and_saves(micro_copy: ChatModel, units: Path, tmp_path: Path, method: str):
    held = {"freeze": {"freeze": (units, [Role.SCU], 0.0)}, "train-only": {"only": (units, [Role.RU])}}.get(method, {})
    got = run(micro_copy, tmp_path / "out", method=method, curve_every=2, **held)
    steps = 3  # 18 rows of 20, and 2 refusals where they are mixed in; 8 a step
    assert len(got.train_loss) == steps and [p.step for p in got.curve] == [0, 2, 3]
    assert got.curve[-1].validation_loss == pytest.approx(got.after.validation_loss, rel=1e-4)
    assert got.curve[0].validation_loss == pytest.approx(got.before.validation_loss, rel=1e-4) or method == "prefix"
    is_held = method in ("freeze", "train-only", "safety-layers")
    assert got.frozen.unchanged is (True if is_held else None) and bool(got.frozen.sha256) == is_held
    saved = {p.name for p in (tmp_path / "out").iterdir()}
    assert ("adapter_config.json" in saved) == (method in ("prefix", "llama-adapter"))
    assert "tokenizer.json" in saved and got.trained_parameters > 0
    if "model.safetensors" in saved:
        again = ChatModel.load(str(tmp_path / "out")).plain.state_dict()
        assert all(torch.equal(v, again[n]) for n, v in micro_copy.plain.state_dict().items())


def test_all_frozen_and_other_impossible_wishes(micro_copy: ChatModel, units: Path, tmp_path: Path):
    every = [Role.SCU, Role.CU, Role.RU, Role.UCU]
    before = [p.detach().clone() for p in micro_copy.plain.parameters()]
    long = PromptSet("long", (*DATA.prompts, Prompt("Why? " * 300, "No")))
    for options, says in (
        ({"freeze": (units, every, 0.0)}, "nothing would be trained"),
        ({"only": (units, [Role.UCU])}, "has no units of role UCU"),
        ({"freeze": (units, [Role.SCU], 0.0), "only": (units, [Role.RU])}, "exclude each other"),
        ({"method": "lora", "freeze": (units, [Role.SCU], 0.0)}, "cannot hold single units"),
        ({"data": long}, r"'long': row 21 has \d+ tokens, the context of micro-llama holds 512"),
        ({"method": "safety-layers", "layers": range(1, 3)}, "layers 0-1"),
        ({"method": "mix-refusals", "mix": 7.0}, "at most 1"),
    ):
        with pytest.raises(BadInput, match=says):
            run(micro_copy, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
    assert all(torch.equal(p, q) for p, q in zip(before, micro_copy.plain.parameters(), strict=True))


def test_a_run_that_diverges_keeps_its_last_good_state(micro_copy: ChatModel, tmp_path: Path, monkeypatch):
    """Poisoned at its second look (after two steps): the start weights are the last that were kept."""
    start = {n: p.clone() for n, p in micro_copy.plain.state_dict().items()}
    looks = []

    def look(model: ChatModel, held) -> dict[str, float]:
        looks.append(1)
        if len(looks) == 6:
            model.anatomy.blocks[0].down.weight.fill_(torch.nan)
        return {"refused": 0.0}

    monkeypatch.setattr(finetune, "_look", look)
    with pytest.raises(BadInput, match="loss became nan at step 10: .*step 8 again; that state is saved in"):
        run(micro_copy, tmp_path / "out", curve_every=2, epochs=6)
    saved = ChatModel.load(str(tmp_path / "out")).plain.state_dict()
    assert all(v.isfinite().all() for v in saved.values())
    assert any(not torch.equal(saved[n], start[n]) for n in start)


def test_a_run_that_never_began_saves_nothing(micro_copy: ChatModel, tmp_path: Path):
    with torch.no_grad():
        micro_copy.anatomy.blocks[0].down.weight[0, 0] = torch.nan
    with pytest.raises(BadInput, match="nothing was saved"):
        run(micro_copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_room_to_save_is_said_before_training(micro_copy: ChatModel, tmp_path: Path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(finetune.shutil, "disk_usage", lambda path: usage)
    before = [p.detach().clone() for p in micro_copy.plain.parameters()]
    with pytest.raises(BadInput, match="make room or choose another --out"):
        run(micro_copy, tmp_path / "out")
    assert all(torch.equal(p, q) for p, q in zip(before, micro_copy.plain.parameters(), strict=True))


def test_an_interrupted_run_resumes_and_tidies_up(micro, make_tokenizer, tmp_path: Path, monkeypatch):
    folder = save_model(micro, tmp_path / "model")
    load = lambda: ChatModel.load(str(folder))
    monkeypatch.setattr(finetune, "CHECKPOINT_EVERY", 2)
    whole = run(load(), tmp_path / "whole", epochs=2)
    real, looks = finetune._look, []

    def look(model: ChatModel, held):
        looks.append(1)
        if len(looks) == 5:
            raise KeyboardInterrupt
        return real(model, held)

    monkeypatch.setattr(finetune, "_look", look)
    kept = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        run(load(), tmp_path / "out", epochs=2, curve_every=1, checkpoints=kept)
    assert (kept / "checkpoint.safetensors").is_file() and not (tmp_path / "out").exists()
    got = run(load(), tmp_path / "out", epochs=2, curve_every=1, checkpoints=kept)
    assert got.train_loss == whole.train_loss and not (kept / "checkpoint.safetensors").exists()
    a, b = (ChatModel.load(str(tmp_path / n)).plain.state_dict() for n in ("whole", "out"))
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_prompts_that_repeat_stay_on_one_side(micro: ChatModel):
    data = PromptSet("d", tuple(Prompt(f"Say {i % 5}", f"answer {i}") for i in range(20)))
    rows, held = finetune._split(micro, data, 0)
    asked = lambda some: {tuple(t for t, p in zip(r.ids, r.positions, strict=True) if p != 3) for r in some}
    assert len(rows) + len(held) == 20 and held and not asked(rows) & asked(held)
    same = PromptSet("d", tuple(Prompt("Say it", f"answer {i}") for i in range(20)))
    assert finetune._split(micro, same, 0)[1] == []


def test_the_report_is_json(micro_copy: ChatModel, units: Path, tmp_path: Path):
    from dataclasses import asdict

    got = run(micro_copy, tmp_path / "out", freeze=(units, [Role.SCU], 0.1), curve_every=3)
    found = json.loads(json.dumps(asdict(got), allow_nan=False))
    assert found["frozen"]["unchanged"] is True and 0 < found["frozen"]["share"] < 1
    assert found["curve"][0] == {
        "step": 0, "refused": got.curve[0].refused, "validation_loss": got.before.validation_loss,
    }  # fmt: skip
