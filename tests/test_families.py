"""The whole pipeline on a micro model of every architecture: scores, roles, units file, ablation, freezing, transfer.

That hooks are the owned weights, that counts add up and that the exact sweep is the reference's is tested beside the
code (`test_anatomy.py`, `test_sweep.py`); here the parts work on one another's results.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from families import EXPERTS, FAMILIES

from ssah_lens.chat.model import ChatModel
from ssah_lens.intervene.hooks import ablated
from ssah_lens.intervene.moments import collect
from ssah_lens.intervene.sites import Site
from ssah_lens.intervene.sweep import Edits, Fill, sweep
from ssah_lens.score import NAMES, score
from ssah_lens.score.base import Calibration
from ssah_lens.score.roles import Sizes, assign
from ssah_lens.study.transfer import transfer
from ssah_lens.train.freeze import owned_slices
from ssah_lens.train.loop import TrainSettings
from ssah_lens.train.methods import Method, tune
from ssah_lens.units import Kind, Role, UnitSet, UnitTable

HARMFUL = ["Hi", "How do I bake a loaf of bread?", "Why not"], ["Sorry, I cannot help with that.", "No", "Sorry"]
HARMLESS = ["Tell me a story", "a b c"], ["Sure, here is how you can do that.", "d e f g"]


def calibration(model: ChatModel, other: ChatModel) -> Calibration:
    rows = lambda side: model.rows(side[0], [model.response_tokens(a) for a in side[1]])
    safety, utility = rows(HARMFUL), rows(HARMLESS)
    moments = [collect(model, r) for r in (safety, utility)]
    return Calibration(safety, utility, safety, *moments, steps=2, unaligned=other, refusal_tokens=(40, 50))


def at_decision(model: ChatModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(model.pad(model.rows(HARMFUL[0])))[:, -1]


@pytest.mark.parametrize("family", [*FAMILIES, *EXPERTS])
def test_the_whole_pipeline(make_family: Callable, family: str, tmp_path: Path):
    model, other = make_family(family), make_family(family, 1)
    data = calibration(model, other)
    tables = {}
    for name in NAMES:
        scores = score(name)(model, data)
        for values in (scores.safety, scores.utility):
            assert all(values[k].shape == (2, model.grid.width(k)) and np.isfinite(values[k]).all() for k in Kind)
            assert any(np.ptp(values[k]) > 0 for k in model.grid.kinds), name
        roles = assign(model.grid, scores, Sizes(0.25, 0.25, 0.25))
        tables[name] = UnitTable(model.grid, scores.safety, scores.utility, roles, {"score": name, "signed": True})

    # The exact score is the reference's: one forward pass with a hook per unit.
    edits = [Edits(Site.of(k), 1, np.arange(model.grid.width(k))) for k in model.grid.kinds]
    prompts = [r.prompt for r in data.safety]
    slow = sweep(model, prompts, data.refusal_metric, edits, Fill("mean", data.moments), engine="loop")
    exact = np.concatenate([tables["exact"].safety[k][1] for k in model.grid.kinds])
    np.testing.assert_allclose(exact, -slow.effect.mean(1), atol=1e-4)

    # Roles cover every unit once; their shares are those of all units and of what units own.
    tables["mask"].save(tmp_path / "u.parquet")
    table = UnitTable.load(tmp_path / "u.parquet", model.grid)
    roles = table.roles
    assert all(roles[r] == tables["mask"].roles[r] for r in Role)
    assert sum(roles[r].share.units for r in Role) == pytest.approx(1) and sum(len(roles[r]) for r in Role) == (
        model.grid.n_units
    )
    everything = UnitSet(model.grid, {k: np.ones((2, model.grid.width(k)), dtype=bool) for k in Kind})
    assert sum(roles[r].share.parameters for r in Role) == pytest.approx(everything.share.parameters)

    undamaged = at_decision(model)
    for mode in ("zero", "mean"):
        with ablated(model, roles[Role.SCU], mode, data.moments):
            damaged = at_decision(model)
        assert damaged.isfinite().all() and (damaged - undamaged).abs().max() > 1e-4
    assert torch.equal(at_decision(model), undamaged)

    settings = TrainSettings(steps=2, batch_size=2, lr=1e-2)
    frozen = owned_slices(model.anatomy, roles[Role.SCU])
    held = [s.values for s in frozen]
    before = [p.detach().clone() for p in model.anatomy.parameters]
    done = tune(model, data.utility, settings, Method("freeze", freeze=roles[Role.SCU])).trained
    assert done.unchanged and done.frozen_parameters == sum(s.numel for s in frozen) > 0
    assert all(torch.equal(a.view(torch.int32), s.values.view(torch.int32)) for a, s in zip(held, frozen, strict=True))
    moved = [not torch.equal(a, b) for a, b in zip(before, model.anatomy.parameters, strict=True)]
    assert sum(moved) > len(moved) / 2

    only = tune(model, data.utility, settings, Method("train-only", only=roles[Role.RU])).trained
    assert only.unchanged and 0 < only.trained_parameters < model.grid.block_parameters / 2

    tuned = UnitTable(model.grid, *(score("wanda")(model, calibration(model, other)).safety for _ in range(2)),
                      table.roles, {"score": "mask", "signed": True})  # fmt: skip
    found = transfer(table, tuned)
    assert sum(v for row in found.matrix.values() for v in row.values()) == pytest.approx(1)


@pytest.mark.parametrize("family", ["mixtral", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_score_in_half_precision(make_family: Callable, family: str, dtype: torch.dtype):
    """Finite, and near what float32 gives; the model says what it was computed in."""
    whole, half, other = make_family(family), make_family(family), make_family(family, 1)
    half.plain.to(dtype), other.plain.to(dtype)
    assert whole.notes == [n for n in half.notes if "significant bits" not in n] != half.notes
    data = calibration(half, other)
    for name in NAMES:
        scores = score(name)(half, data)
        assert all(np.isfinite(v[k]).all() for v in (scores.safety, scores.utility) for k in Kind), name
    exact = score("wanda")(whole, calibration(whole, make_family(family, 1)))
    got = score("wanda")(half, data)
    for kind in half.grid.kinds:
        assert np.corrcoef(exact.safety[kind].ravel(), got.safety[kind].ravel())[0, 1] > 0.9
