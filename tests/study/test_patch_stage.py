"""Stage `patch` as the study runs it, whole and killed, on a micro model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.promptset import Prompt, PromptSet
from ssah_lens.config import PatchConfig
from ssah_lens.results import PatchResult
from ssah_lens.study import patch_stage, stages
from ssah_lens.study.parts import Parts


def prompts(*texts: str) -> PromptSet:
    return PromptSet("made up", tuple(Prompt(t) for t in texts))


SIDES = prompts("abc x def", "tell x me 1 lot", "x"), prompts("abc y def", "tell y me 2 lot", "y")


@pytest.fixture
def run(micro: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The stage in a folder of this name, over made-up test pairs."""
    monkeypatch.setattr(stages, "pairs", lambda split: {"test": SIDES}[split])
    config = SimpleNamespace(seed=0, patch=PatchConfig(pairs=2, units=8, prompts=2, steps=2))

    def stage(name: str) -> PatchResult:
        folder = SimpleNamespace(parts=lambda stage: Parts(tmp_path / name / f"{stage}.parts"))
        return stages.patch(SimpleNamespace(aligned=micro, config=config, folder=folder, note=print))

    return stage


def test_a_killed_stage_goes_on_with_the_part_under_way(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the middle of a map, and between two: the end is that of an unbroken stage, to the last digit."""
    whole = run("whole")
    assert [m.site for m in whole.maps] == ["resid", "attn", "mlp", "head"] and len(whole.units) == 2
    asked: list[str] = []
    real = patch_stage.activation_patching

    def killed_at(n: int):
        def patching(model, clean, corrupted, metric, site, store=None):
            asked.append(str(site))
            found = real(model, clean, corrupted, metric, site, store=store)
            if len(asked) == n:
                assert store.is_file() and store.parent == tmp_path / "killed" / "patch.parts" / f"map-{site}"
                raise KeyboardInterrupt
            return found

        return patching

    for n in (2, 4):
        monkeypatch.setattr(patch_stage, "activation_patching", killed_at(n))
        with pytest.raises(KeyboardInterrupt):
            run("killed")
        monkeypatch.setattr(stages, "find_openings", lambda *args: pytest.fail("found again"))
        monkeypatch.setattr(patch_stage, "matched", lambda *args: pytest.fail("matched again"))
    monkeypatch.setattr(patch_stage, "activation_patching", killed_at(0))
    assert run("killed") == whole
    assert asked == ["resid", "attn", "attn", "mlp", "mlp", "head"]
    monkeypatch.setattr(patch_stage, "unit_agreement", lambda *args, **options: pytest.fail("measured again"))
    assert run("killed") == whole
    kept = {p.name for p in (tmp_path / "killed" / "patch.parts").iterdir()}
    assert "map-attn.json" in kept and not kept & {"map-attn", "map-resid"}, "cells go when the map is whole"
