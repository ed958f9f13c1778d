"""The exact score measured layer by layer is the exact score, and a layer that is kept is not measured again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from planted import Planted, plant, prompts

from ssah_lens.config import UnitsConfig
from ssah_lens.score import score
from ssah_lens.score.base import Scores
from ssah_lens.study import sweeps
from ssah_lens.study.parts import Parts
from ssah_lens.study.sweeps import effects_in_parts
from ssah_lens.study.units import calibrate
from ssah_lens.units import Kind


@pytest.fixture(scope="module")
def planted(make_tokenizer) -> Planted:
    return plant(make_tokenizer)


def bits(found: Scores) -> list[bytes]:
    return [side[k].tobytes() for side in (found.safety, found.utility) for k in Kind]


def test_parts_are_the_whole(planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = UnitsConfig(score="exact", exact_prompts=6)
    data = calibrate(planted.model, planted.unaligned, prompts(True, 12), prompts(False, 12), config, 0)
    wanted, keep = [], Parts(tmp_path)
    ahead = lambda task, shared, items, kind: wanted.extend(items)
    apart = replace(data, measured=replace(data.measured, effects=effects_in_parts(keep, ahead)))
    whole = bits(score("exact")(planted.model, data))
    assert bits(score("exact")(planted.model, apart)) == whole
    layers = planted.model.grid.n_layers
    assert sorted(f"{w}.json" for w in wanted) == sorted(p.name for p in tmp_path.iterdir())
    assert len(set(wanted)) == 2 * 2 * layers  # refusals and answers, neurons and heads
    (tmp_path / f"{wanted[0]}.json").unlink()
    real, measured = sweeps.sweep, []
    monkeypatch.setattr(sweeps, "sweep", lambda *a, **k: measured.append(a[3]) or real(*a, **k))
    assert bits(score("exact")(planted.model, apart)) == whole and len(measured) == 1
