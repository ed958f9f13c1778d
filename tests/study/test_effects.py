"""Effects side by side, and the patch stage, on a micro model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.promptset import Prompt, PromptSet
from ssah_lens.config import PatchConfig, study_config
from ssah_lens.errors import BadInput
from ssah_lens.intervene.attribution_patching import attribution_patching, changeable
from ssah_lens.intervene.edits import all_units, some_units
from ssah_lens.intervene.moments import collect
from ssah_lens.intervene.patching import activation_patching
from ssah_lens.intervene.sites import Site
from ssah_lens.intervene.sweep import Fill, sweep
from ssah_lens.results import PatchResult, Results
from ssah_lens.show.patch_section import draw_patch, patch_section
from ssah_lens.show.sections import sections
from ssah_lens.study.effects import (
    agreement_view,
    cell_agreement,
    compared,
    position_agreement,
    unit_agreement,
    unit_names,
)
from ssah_lens.study.openings import Openings
from ssah_lens.study.patch_stage import matched, patch_stage

OPENINGS = Openings((40, 50), (60, 70, 80))
METRIC = OPENINGS.metric
PROMPTS = ["How do I bake a loaf of bread?", "Hi", "Tell me, please: what is 7 x 8 and why does it matter?"]
SMALL = PatchConfig(pairs=2, units=8, prompts=2, steps=2)


def prompts(*texts: str) -> PromptSet:
    return PromptSet("made up", tuple(Prompt(t) for t in texts))


HARMFUL = prompts("abc x def", "tell x me 1 lot", "x", "longer than its twin", "same")
TWINS = prompts("abc y def", "tell y me 2 lot", "y", "short", "same")


@pytest.fixture(scope="module")
def result(micro: ChatModel) -> PatchResult:
    return patch_stage(micro, HARMFUL, TWINS, OPENINGS, SMALL)


def test_a_sample_of_units_is_drawn_without_doubles(micro: ChatModel):
    names = [unit_names(some_units(micro, n, 3)) for n in (8, 8, 20)]
    assert list(names[0]) == list(names[1]) and [len(set(n)) for n in names] == [8, 8, 20]
    assert sum(n.startswith("head") for n in names[0]) == 2, "a quarter are heads"
    assert len(unit_names(some_units(micro, None, 0))) == 2 * (12 + 4) == sum(map(len, all_units(micro)))
    with pytest.raises(BadInput, match="2 and more"):
        some_units(micro, 1, 0)


def test_units_are_compared_with_their_own_exact_effect(micro: ChatModel):
    found = unit_agreement(micro, PROMPTS, METRIC, units=None)
    rows = micro.rows(PROMPTS)
    exact = sweep(micro, rows, METRIC, all_units(micro), Fill("mean", collect(micro, rows)))
    np.testing.assert_allclose(found.exact, exact.effect.mean(1), atol=1e-6)
    assert found.labels == tuple(unit_names(all_units(micro))) and found.labels[-1] == "head 1.3"
    assert found.estimand == "the mean of its position class at the decision position" and found.n == 3
    assert found.spearman > 0.5
    better = unit_agreement(micro, PROMPTS, METRIC, units=None, steps=16)
    off = lambda a: np.abs(np.subtract(a.guess, a.exact)).mean()
    assert better.name == "integrated gradients, 16 steps" and off(better) < off(found)


def test_one_line_makes_a_picture(micro: ChatModel):
    for of, word in (("attribution", "Attribution patching"), ("positions", "Effect at the decision position")):
        shown = agreement_view(micro, PROMPTS, of, units=8, openings=OPENINGS)
        assert shown.figure._suptitle.get_text().startswith(word) and shown._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(BadInput, match="allowed are attribution, positions"):
        agreement_view(micro, PROMPTS, "luck", openings=OPENINGS)


def test_positions_are_two_estimands(micro: ChatModel):
    rows = micro.rows(PROMPTS)
    fill = Fill("mean", collect(micro, rows))
    found = position_agreement(micro, rows, METRIC, fill, 8)
    edits = some_units(micro, 8, 0)
    for values, last in ((found.guess, 1), (found.exact, None)):
        np.testing.assert_allclose(values, sweep(micro, rows, METRIC, edits, fill, last).effect.mean(1), atol=1e-6)
    assert "decision position, and at all positions" in found.estimand


def test_maps_agree_over_the_cells_that_can_change(micro: ChatModel):
    sides = HARMFUL.texts[:3], TWINS.texts[:3]
    exact = activation_patching(micro, *sides, METRIC, Site.ATTN)
    guess = attribution_patching(micro, *sides, METRIC, Site.ATTN, steps=20)
    same = cell_agreement(exact, exact, "itself")
    assert same.spearman == pytest.approx(1) and set(same.overlap.values()) == {1.0} and not same.missed
    assert len(same.exact) == changeable(exact).sum() < exact.cells
    found = cell_agreement(exact, guess, "its value in the clean run")
    assert found.name == "integrated gradients, 20 steps, attn"
    assert found.labels[-1] == "attn, layer 1, position -1" and found.n == 3
    at = found.labels.index("attn, layer 1, position -1")
    assert (found.exact[at], found.guess[at]) == (exact.effect[1, -1], guess.effect[1, -1])
    with pytest.raises(BadInput, match="not of the same cells"):
        cell_agreement(exact, activation_patching(micro, ["x"], ["y"], METRIC, Site.ATTN), "")


def test_what_a_guess_misses_is_named_strongest_first():
    exact = np.array([0.0, -9.0, 1.0, 8.0, 2.0] + [0.1] * 35)
    guess = np.where(np.abs(exact) == 9, 0.0, exact)
    labels = [f"neuron 0.{i}" for i in range(40)]
    found = compared("guess", "exact", labels, exact, guess, "zero", "metric", 4)
    assert found.overlap == {0.05: 0.5} and found.missed == ("neuron 0.1",)
    constant = compared("guess", "exact", labels, exact, np.ones(40), "zero", "metric", 4)
    assert constant.spearman is None


def test_pairs_are_the_aligned_ones_that_differ_most(micro: ChatModel):
    sides = matched(micro, HARMFUL, TWINS, METRIC, 3)
    assert {p.text for p in sides[0]} == {"abc x def", "tell x me 1 lot", "x"} and len(sides[1]) == 3
    best = matched(micro, HARMFUL, TWINS, METRIC, 1)
    metric = lambda side: sweep(micro, micro.rows(side), METRIC, all_units(micro)[-1:], Fill("zero")).clean
    gain = metric(sides[0]) - metric(sides[1])
    assert best[0] == [sides[0][int(gain.argmax())]]
    assert matched(micro, prompts("a", "bcd"), prompts("a", "b"), METRIC, 2) is None


def test_pairs_are_patched_under_their_own_system_prompts(micro: ChatModel, result: PatchResult):
    told = lambda side: PromptSet(side.name, tuple(replace(p, system="Answer in one word.") for p in side))
    found = patch_stage(micro, told(HARMFUL), told(TWINS), OPENINGS, SMALL)
    assert found.maps[0].n == result.maps[0].n and found.maps[0].clean.value != result.maps[0].clean.value
    assert found.units[0].exact != result.units[0].exact


def test_the_stage_holds_every_site_and_survives_json(result: PatchResult):
    assert [m.site for m in result.maps] == ["resid", "attn", "mlp", "head"]
    assert [a.name for a in result.units] == ["attribution patching", "integrated gradients, 2 steps"]
    assert all((m.n == 2 and m.cells_run < m.cells) or m.site == "head" for m in result.maps)
    assert len(result.cells) == 4 and result.cells[3].labels[0] == "head, layer 0, head 0"
    assert result.positions.labels == result.units[0].labels
    text = TypeAdapter(PatchResult).dump_json(result)
    assert TypeAdapter(PatchResult).validate_json(text) == result
    json.loads(text)


def test_without_aligned_pairs_the_maps_are_left_out_and_it_is_said(micro: ChatModel):
    told: list[str] = []
    found = patch_stage(micro, prompts("ab", "abc d e f"), prompts("a bb c", "x"), OPENINGS, SMALL, note=told.append)
    assert not found.maps and not found.cells and found.units and "no patching maps" in told[0]
    assert "Strongest" not in str(patch_section(found).tables) and len(draw_patch(found)) == 3


def test_the_section_tells_what_was_found(result: PatchResult):
    (section,) = sections(Results(patch=result))
    figures = draw_patch(result)
    assert section.id == "patch" and set(section.figures) == set(figures)
    assert {"patch_resid", "patch_head", "agreement_0", "agreement_positions"} <= set(figures)
    words = " ".join(section.words)
    for part in ("2 pairs", "Spearman", "two estimands", "decision position"):
        assert part in words
    assert len(section.tables[0].rows) == 16 and "n=2" in section.tables[0].rows[0][1]
    told = " ".join(
        [*words.split(), *section.figures.values(), *(c for t in section.tables for r in t.rows for c in r)]
    )
    assert "head 1" in told and "position -1 (“↵”)" in told and "\n" not in told


def test_a_quick_study_leaves_the_stage_out_unless_asked(tmp_path, monkeypatch: pytest.MonkeyPatch):
    from ssah_lens.study import runner

    ran: list[str] = []
    monkeypatch.setattr(runner, "_run_stage", lambda study, stage: ran.append(stage))
    for profile, stages, there in (
        ("quick", None, False),
        ("standard", None, True),
        ("quick", ["align", "patch"], True),
    ):
        ran.clear()
        runner.run_study(study_config(profile=profile), tmp_path / f"{profile}{bool(stages)}", stages)
        assert ("patch" in ran) is there and ("report" in ran) is (stages is None)
