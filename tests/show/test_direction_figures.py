"""Figures and section of stage `direction`."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from made_up import made_up
from made_up_direction import made_up_direction

from ssah_lens.show.direction_figures import direction_figures
from ssah_lens.show.direction_section import direction
from ssah_lens.show.report import html
from ssah_lens.show.run_folder import draw
from ssah_lens.show.terminal import print_direction
from ssah_lens.study.direction import direction_report


def test_every_figure_is_drawn_and_described():
    r = made_up_direction()
    drawn = direction_figures(r)
    assert set(drawn) == set(direction(r).figures)
    assert {n for n in draw(replace(made_up(), direction=r)) if n.startswith("direction")} == set(drawn)


def test_the_rank_curve_shows_every_basis_and_control_with_its_value():
    figure = direction_figures(made_up_direction())["direction_interchange_twins"]
    (axes,) = figure.axes
    lines = {c.get_label(): c for c in axes.containers}
    assert set(lines) == {
        "DAS", "difference of means", "probe", "random subspace", "DAS, arbitrary labels", "DAS, untrained model"
    }  # fmt: skip
    assert lines["DAS"].lines[0].get_ydata() == pytest.approx([43 / 48, 45 / 48, 46 / 48, 47 / 48])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2", "4", "8"]


def test_no_name_of_a_change_stands_on_another():
    r = made_up_direction()
    r = replace(r, steered=(*r.steered, replace(r.find("added"), name="added at its own length")))
    figure = direction_figures(r)["direction_steered"]
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in figure.axes[-1].get_xticklabels()]
    assert len(boxes) == 6 and all(a.x1 < b.x0 for a, b in pairwise(boxes))
    assert boxes[-1].x1 < figure.bbox.x1


def test_both_distances_of_both_models_are_drawn():
    """Not their difference alone: the paper's Figures 2 to 4 show the two sides."""
    r = made_up_direction()
    panels = direction_figures(r)["direction_distance_sides"].axes
    assert len(panels) == 6  # two models, k = 2, 6, 10
    for i, axes in enumerate(panels):
        d, k = r.distances[i % 2], i // 2
        assert axes.get_title(loc="left") == f"{d.model.capitalize()} model, k = {d.tokens[k]}"
        refusing, fulfilling = axes.get_lines()
        assert list(refusing.get_ydata()) == [row[k] for row in d.refusing]
        assert list(fulfilling.get_ydata()) == [row[k] for row in d.fulfilling]
        assert refusing.get_linestyle() != fulfilling.get_linestyle()  # told apart without colours
    caption = panels[0].figure.get_supxlabel()
    assert "mean over 40 harmful prompts" in " ".join(caption.split())


def test_the_section_says_the_numbers_and_what_was_left_out():
    section = direction(made_up_direction())
    text = " ".join(section.words)
    assert "block 9" in text and "something, for a reason" in text and "cosine 0.80" in text
    cells = {row[0]: row for t in section.tables for row in t.rows}
    assert cells["ablated"][1].startswith("0.05") and cells["DAS, rank 1"][1].startswith("0.90")
    assert cells["ablated"][-2:] == (cells["undamaged"][-2], cells["undamaged"][-1])
    assert cells["ablated"][-2].startswith("0.75") and cells["ablated"][-1].startswith("1.40")
    assert "ablated: 0.75 right, perplexity 1.40" in text
    label, behaviour = cells["harm, difference of means"][1:]
    assert label.startswith("0.90") and behaviour.startswith("0.96") and cells["harm, probe"][2] == "not measured"
    assert cells["layer 7, head 1"][1] == "0.60" and cells["random direction 0 ablated"][1].startswith("0.95")


def test_without_a_counterpart_and_without_a_choice_it_still_speaks():
    r = made_up_direction()
    bare = replace(
        r, readouts=(), interchange=(), before=None, by_choice=False, relaxed=True, distances=r.distances[:1],
        onset=replace(r.onset, kl=(), kl_first=None, forced_refusal=()), chain=replace(r.chain, heads=[], top=()),
    )  # fmt: skip
    assert {"direction_auroc", "direction_interchange_twins"}.isdisjoint(direction_figures(bare))
    assert "too few were refused" in direction(bare).words[0]


def test_responses_are_escaped_in_the_report():
    page = html(replace(made_up(), direction=made_up_direction()), {}, {})
    assert "<script>alert" not in page and "own <b>" not in page and 'id="direction"' in page


def test_the_terminal_shows_effects_controls_ranks_and_verdicts(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    print_direction(direction_report(made_up_direction(), "runs/direction"))
    said = capsys.readouterr().out
    for text in ("block 9", "random direction ablated", "choice, probe", "difference of means", "H3"):
        assert text in said, text
    rows = [line for line in said.splitlines() if "DAS, untrained model" in line]
    assert len(rows) == 4 and all("0.40 [" in row for row in rows)


def test_what_was_not_measured_is_named_when_it_is_asked_for():
    r = made_up_direction()
    assert r.get("ablated") is r.find("ablated") and r.get("ablated").on_harmful is r.get("ablated").harmful
    for absent in (lambda: r.get("turned round"), lambda: r.get("added").on_harmful):
        with pytest.raises(LookupError, match="not measured"):
            absent()
