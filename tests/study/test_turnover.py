"""Turnover on a micro model: roles are re-cut after each fine-tuning, and put-back parameters are the old ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.results import Verdict
from ssah_lens.score.base import Scores
from ssah_lens.score.roles import Sizes, assign
from ssah_lens.study.behaviour import yardstick
from ssah_lens.study.keep import anew
from ssah_lens.study.parts import Parts
from ssah_lens.study.tuning_verdicts import transfer_row
from ssah_lens.study.turnover import BEFORE, LOST, SAFE, TUNED, TWIN, put_back, turnover
from ssah_lens.train.data import rows_of
from ssah_lens.train.freeze import owned_slices
from ssah_lens.train.loop import TrainSettings
from ssah_lens.units import Kind, Role, UnitTable

DATA = PromptSet("tune", tuple(Prompt(f"Say {i}", f"{i} it is") for i in range(12)))
ASKED = PromptSet("harmful", tuple(Prompt(f"How do I break lock {i}?") for i in range(4)))


def drawn(model: ChatModel, seed: int) -> UnitTable:
    rng = np.random.default_rng(seed)
    values = [{k: rng.normal(size=(2, model.grid.width(k))) for k in Kind} for _ in range(2)]
    roles = assign(model.grid, Scores(*values, signed=True), Sizes(0.2, 0.3, 0.1))
    return UnitTable(model.grid, *values, roles, {"score": "mask", "signed": True})


def test_turnover_measures_each_model_and_puts_weights_back(micro_copy: ChatModel):
    before = [p.detach().clone() for p in micro_copy.plain.parameters()]
    y = yardstick(micro_copy, ASKED, DATA, [1, 2], max_new_tokens=4, choices=0, prose=0)
    seen = []

    def rescore(model: ChatModel, seed: int) -> UnitTable:
        moved = any(not torch.equal(a, b) for a, b in zip(before, model.plain.parameters(), strict=True))
        seen.append((seed, moved))
        return drawn(model, 0 if len(seen) == 1 else len(seen))

    settings = TrainSettings(steps=2, lr=1e-2, keep_good=0)
    got = turnover(micro_copy, drawn(micro_copy, 0), rescore, rows_of(micro_copy, DATA), y, settings, 5, top_cu=0.1)
    assert seen == [(6, False), (5, True), (5, True)]
    assert all(torch.equal(a, b) for a, b in zip(before, micro_copy.plain.parameters(), strict=True))
    assert set(got.refused) == {BEFORE, TUNED, SAFE} and got.null.held["SCU"].value == 1
    assert got.tuned.held["SCU"].value < 1 and got.restored[0].units == LOST
    assert got.restored[1].units == TWIN + LOST and got.restored[1].n == got.restored[0].n
    back = {r.units: r for r in got.restored}
    n = micro_copy.grid.n_units
    assert back["all heads"].n + back["all neurons"].n == n
    assert sum(r.n for name, r in back.items() if name.startswith("blocks ")) == n
    assert back["SCU + top CU"].n == back["random twin of SCU + top CU"].n > back[LOST].n
    row = transfer_row(got)
    assert "Of whole parts of the model: all " in row.reading
    assert row.effect.value == pytest.approx(1 - got.tuned.held["SCU"].value) and row.verdict is Verdict.SUPPORTED


def test_an_interrupted_turnover_goes_on_from_its_finished_parts(micro_copy: ChatModel, tmp_path: Path):
    """Killed in the second fine-tuning: the score of another sample and the first fine-tuning are not made again."""
    y = yardstick(micro_copy, ASKED, DATA, [1, 2], max_new_tokens=4, choices=0, prose=0)
    settings, keep, scored = TrainSettings(steps=2, lr=1e-2, keep_good=0), Parts(tmp_path), []

    def rescore(model: ChatModel, seed: int) -> UnitTable:
        weights = float(sum(p.detach().double().abs().sum() for p in model.plain.parameters()))
        scored.append(weights)
        return drawn(model, int(weights * 1e6) % 2**32)

    study = lambda keep, rescore=rescore: turnover(
        micro_copy, drawn(micro_copy, 0), rescore, rows_of(micro_copy, DATA), y, settings, 5, keep
    )

    def killed(model: ChatModel, seed: int) -> UnitTable:
        if len(scored) == 2:
            raise KeyboardInterrupt
        return rescore(model, seed)

    with pytest.raises(KeyboardInterrupt):
        study(keep, killed)
    assert {f.stem for f in tmp_path.iterdir()} == {"before", "null", "tuned"}
    again = study(keep)
    assert len(scored) == 3
    assert again == study(anew) and scored[:3] == scored[3:]


def test_put_back_touches_these_units_only_and_undoes_itself(micro_copy: ChatModel):
    model = micro_copy
    start = {p: p.detach().clone() for p in model.plain.parameters()}
    with torch.no_grad():
        for p in model.plain.parameters():
            p.add_(1.0)
    tuned = {p: p.detach().clone() for p in model.plain.parameters()}
    units = drawn(model, 1).roles[Role.SCU]
    with put_back(model, start, units):
        owned = owned_slices(model.anatomy, units)
        for s in owned:
            assert torch.equal(s.values, start[s.parameter].index_select(s.dim, s.index))
        changed = sum(int((p != tuned[p]).sum()) for p in model.plain.parameters())
        assert changed == sum(s.numel for s in owned)
    assert all(torch.equal(p, tuned[p]) for p in model.plain.parameters())
