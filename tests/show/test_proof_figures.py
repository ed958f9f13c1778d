"""The proof's figures and sections, from made-up results."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
from made_up import PROVENANCE, behaviour, hits, made_up, made_up_table, outcomes, rate
from made_up_direction import made_up_direction
from made_up_tuning_stage import budget, transfer, tuning
from pydantic import TypeAdapter

from ssah_lens.config import UnitsConfig
from ssah_lens.results import (
    ComparedScore,
    ContextsResult,
    Dose,
    DosePoint,
    Faithfulness,
    HarmfulGroup,
    HarmfulSet,
    Match,
    Results,
    RoleMoves,
    RoleShare,
    ScoreComparison,
    Snippet,
    StabilityResult,
    SufficiencyResult,
    Transplant,
    UnitContext,
)
from ssah_lens.show import proof_figures, proof_sections
from ssah_lens.show.figures import roles_ablated
from ssah_lens.show.report import html
from ssah_lens.show.run_folder import draw
from ssah_lens.show.sections import sections


def made_up_comparison() -> ScoreComparison:
    lines = []
    for name, lost, score in (("mask", 0.8, 3.1), ("wifv", 0.1, 0.2), ("random", 0.0, -0.1)):
        doses = tuple(Dose(s, s * 0.92, behaviour(0.97 - lost * s * 100, choices=None)) for s in (0.001, 0.003, 0.01))
        match = {"mlp": Match(0.3, 0.12, 1500), "head": Match(None, 0.0, 270)}
        lines.append(ComparedScore(name, 12.0, 2.5, match, match, doses, lost, score))
    shared = {a: {b: 1.0 if a == b else 0.03 for b in ("mask", "wifv", "random")} for a in ("mask", "wifv", "random")}
    return ScoreComparison("m", behaviour(0.97), 0.25, "the mean", 12, 88.0, tuple(lines), shared)


def made_up_stability() -> StabilityResult:
    held = {r: rate(0.6) for r in ("SCU", "UCU", "RU", "CU")}
    moves = RoleMoves({}, {}, held, dict.fromkeys(held, 0.02))
    names = ("bootstrap 0", "bootstrap 1", "first half", "other half", "other seed", "half against half")
    confidence = {"SCU": 0.61, "UCU": 0.55, "RU": 0.3, "CU": 0.97}
    return StabilityResult("mask", 2, confidence, 0.8, confidence, dict.fromkeys(names, moves))


def made_up_sufficiency() -> SufficiencyResult:
    names = {"nothing": 0.03, "SCU": 0.4, "random twin 1": 0.05, "all units": 0.95}
    moved = tuple(
        Transplant(n, 464 * (n != "nothing"), outcomes(v), outcomes(0.05, n=50), rate(v)) for n, v in names.items()
    )
    shares, values = (0.0, 0.01, 0.1, 1.0), (0.0, 0.1, 0.6, 1.0)
    curve = lambda name, area: Faithfulness(name, shares, values, area, 1 - area, 4.0, 0.1, (100, 50))
    return SufficiencyResult(moved, (curve("SCU (I_S - I_U)", 0.81), curve("random 0", 0.4)))


@pytest.fixture(scope="module")
def whole() -> Results:
    found = made_up()
    doses = tuple(
        DosePoint(s, RoleShare(int(46350 * s), s, 0.92 * s), behaviour(0.97 - 8 * s, ppl=1.2 + s), hits(0.97 - 8 * s),
                  (behaviour(0.96), behaviour(0.95), behaviour(0.97)), (3.9, 4.0, 4.2))
        for s in (0.001, 0.01, 0.1)
    )  # fmt: skip
    groups = tuple(
        HarmfulGroup(by, n, rate(0.97), rate(0.2), rate(0.95))
        for by, n in (("phrasing", "typo"), ("category", "fraud"))
    )
    sets = (HarmfulSet("<b>AdvBench</b>", outcomes(0.9), outcomes(0.1, 0.05), outcomes(0.9)),)
    tasks = {"science": rate(0.5), "reading": rate(0.6)}
    sub = lambda b: replace(b, utility=replace(b.utility, choices_by_task=tasks))
    conditions = tuple(replace(c, behaviour=sub(c.behaviour)) for c in found.ablate.conditions)
    grid = replace(
        found.ablate, baseline=sub(found.ablate.baseline), conditions=conditions, doses=doses, groups=groups, sets=sets
    )
    snippet = Snippet((" how", " to", " <b>"), (0.1, 0.2, 3.1), 2)
    contexts = ContextsResult((UnitContext("mlp", 3, 5, 0.25, {"harmful": (snippet,), "harmless": ()}),))
    return replace(
        found,
        contexts=contexts,
        ablate=grid,
        scores=made_up_comparison(),
        stability=made_up_stability(),
        sufficiency=made_up_sufficiency(),
    )


def text(figure) -> str:
    said = [t.get_text() for a in figure.axes for t in (*a.texts, *a.get_yticklabels(), a._left_title, a.xaxis.label)]
    return " ".join([*said, figure.get_suptitle(), figure.get_supxlabel()])


def test_a_whole_run_draws_its_proof_and_the_report_shows_it(whole: Results):
    figures = draw(whole, made_up_table())
    new = {"scores_compared", "stability", "dose_response", "transplants", "faithfulness", "units_by_kind"}
    assert new <= set(figures)
    named = {n for s in sections(whole) for n in s.figures}
    assert set(figures) <= named
    page = html(whole, figures, PROVENANCE)
    for words in ("Which score is best", "which is the default", "Rising doses", "by kind of request", "by sub-test",
                  "Are the safety units enough", "L3N5", "1 of 1 push",
                  "How stable", "Area under the faithfulness curve"):  # fmt: skip
        assert words in page, words
    assert "&lt;b&gt;AdvBench" in page and "<b>AdvBench" not in page


def test_the_role_table_has_every_outcome_of_every_role(whole: Results):
    table = proof_sections.role_table(whole.ablate)
    by = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(by)[:3] == ["undamaged", "SCU, mean", "SCU, zero"] and len(by) == 1 + 4 * 2
    assert by["SCU, mean"]["fulfilled"].startswith("0.68") and by["SCU, mean"]["share of units"] == "1.00%"
    assert by["SCU, mean"]["refused, random sets"] == "0.92 to 0.95" and by["SCU, zero"]["refused, random sets"] == ""


def test_the_dose_figure_shows_controls_and_the_paper(whole: Results):
    figure = proof_figures.dose_response(whole.ablate)
    refused, outcomes_, perplexity = figure.axes
    assert set(refused.get_legend_handles_labels()[1]) == {"SCU ranking", "random sets", "the paper's SCU"}
    diamonds = [line for line in refused.lines if line.get_marker() == "D"]
    assert [len(d.get_ydata()) for d in diamonds] == [3, 3, 3]
    assert set(outcomes_.get_legend_handles_labels()[1]) == {"fulfilled", "incoherent"}
    assert perplexity.get_yscale() == "log" and "60 harmful" in text(figure)


def test_the_winner_is_marked_and_the_words_say_whether_it_is_the_default():
    comparison = made_up_comparison()
    figure = proof_figures.scores_compared(comparison)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["random", "wifv", "mask"]
    assert "80%, 3.1 nats" in text(figure)
    assert UnitsConfig().score == proof_sections.DEFAULT_SCORE
    section = proof_sections.scores(comparison)
    assert section.tables[0].rows[0][:2] == ("mask", "80%") and "which is the default" in section.words[0]
    lines = (replace(comparison.scores[1], refusal_lost=0.9), comparison.scores[0])
    assert (
        "winner on validation is “wifv”; the default is “mask”"
        in proof_sections.scores(replace(comparison, scores=lines)).words[0]
    )


def test_units_by_kind_counts_the_layers_own_units():
    table = made_up_table()
    figure = proof_figures.units_by_kind(table)
    assert len(figure.axes) == 2 and "attention heads" in text(figure)
    bars = [p.get_height() for p in figure.axes[0].containers[0]]
    from ssah_lens.units import Kind, Role

    assert bars == pytest.approx(table.roles[Role.SCU].masks[Kind.MLP].mean(1))


def test_faithfulness_tells_how_many_prompts_it_compares_where_that_was_kept():
    new = made_up_sufficiency()
    older = replace(new, faithfulness=tuple(replace(c, n=None) for c in new.faithfulness))
    for found, prompts in (
        (new, "100 harmful and 50 harmless prompts"),
        (older, "between harmful and harmless prompts"),
    ):
        caption = text(proof_figures.faithfulness(found.faithfulness))
        assert prompts in " ".join(caption.split()), caption
    shown = proof_sections.sufficiency(new).figures["faithfulness"]
    assert "refusal scores of 100 harmful and 50 harmless prompts" in shown
    kept = asdict(new.faithfulness[0])
    del kept["n"]
    assert TypeAdapter(Faithfulness).validate_python(kept) == older.faithfulness[0], "an older file is read"


def test_sections_without_a_counterpart_or_grid_say_so():
    alone = proof_sections.sufficiency(SufficiencyResult((), made_up_sufficiency().faithfulness))
    assert "no unaligned counterpart" in alone.words[0] and "transplants" not in alone.figures
    assert proof_sections.grid_tables(made_up().ablate) == ()


def test_every_figure_is_read_without_the_paper(whole: Results):
    """Every caption tells n, every axis says what it shows, and no tick label lies on another."""
    results = replace(whole, direction=made_up_direction(), tuning=tuning(), budget=budget(), transfer=transfer())
    for name, figure in draw(results, made_up_table()).items():
        told = " ".join(f"{figure.get_suptitle()} {text(figure)}".split())
        counted = r"n ?= ?\d|\d (harmful|ordinary|validation|train|test|random|prompts|neurons|units)\b"
        assert re.search(counted, told), (name, told)
        figure.draw_without_rendering()
        for axes in figure.axes:
            for axis, sign in ((axes.xaxis, 1), (axes.yaxis, -1)):
                shown = [t for t in axis.get_ticklabels() if t.get_text() and t.get_visible()]
                boxes = sorted((t.get_window_extent() for t in shown), key=lambda b: (b.x0, b.y0)[sign < 0])
                across = [(a.x1 - b.x0, a.y1 - b.y0)[sign < 0] for a, b in pairwise(boxes)]
                assert all(d <= 1 for d in across) or axis.get_ticks_position() == "none", (name, across)


def test_a_narrow_axis_of_ratios_has_numbers_on_it(whole: Results):
    for figure in (proof_figures.dose_response(whole.ablate), roles_ablated(whole.ablate)):
        axes = figure.axes[-1]
        figure.draw_without_rendering()
        low, high = axes.get_ylim()
        assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 3
        assert "1×" in [t.get_text() for t in axes.get_yticklabels()]


def test_a_role_without_random_sets_is_named(whole: Results):
    bare = tuple(c for c in whole.ablate.conditions if c.control is None or c.role != "CU")
    words_of = lambda r: " ".join(roles_ablated(r).get_supxlabel().split())
    assert "none was measured for CU" in words_of(replace(whole.ablate, conditions=bare))
    assert "none was measured" not in words_of(whole.ablate) and "60 items" in words_of(whole.ablate)
