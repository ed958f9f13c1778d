"""The Sankey diagram: every unit that moves is drawn once, where it came from and where it went."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.patches import PathPatch, Rectangle

from ssah_lens import stats
from ssah_lens.errors import BadInput
from ssah_lens.results import RoleMoves, TransferReport
from ssah_lens.show.style import ROLE_COLOURS
from ssah_lens.show.transfer_figures import lay_out, picture, transfer

COUNTS = {
    "SCU": {"SCU": 30, "UCU": 0, "CU": 70, "RU": 0},
    "UCU": {"SCU": 0, "UCU": 150, "CU": 50, "RU": 0},
    "CU": {"SCU": 60, "UCU": 50, "CU": 5000, "RU": 90},
    "RU": {"SCU": 10, "UCU": 0, "CU": 80, "RU": 410},
}
N = sum(n for row in COUNTS.values() for n in row.values())


def moves(counts: dict) -> RoleMoves:
    sizes = {r: sum(row.values()) for r, row in counts.items()}
    held = {r: stats.rate([i < counts[r][r] for i in range(n)]) for r, n in sizes.items() if n}
    matrix = {b: {a: n / N for a, n in row.items()} for b, row in counts.items()}
    return RoleMoves(matrix, counts, held, {r: n / N for r, n in sizes.items() if n})


def made_up(null: bool = True, score: str = "mask") -> TransferReport:
    return TransferReport(**vars(moves(COUNTS)), score=score, n_units=N, null=moves(COUNTS) if null else None)


def words(figure) -> str:
    texts = [t.get_text() for axes in figure.axes for t in axes.texts]
    return " ".join([figure._suptitle.get_text(), figure._supxlabel.get_text(), *texts]).replace("\n", " ")


def test_bars_and_ribbons_add_up():
    bars = lay_out(made_up())
    assert bars.n == N - 5000, "all but the units that stay CU"
    assert {r: n for r, (_, n) in bars.before.items()} == {"SCU": 100, "UCU": 200, "CU": 200, "RU": 500}
    assert {r: n for r, (_, n) in bars.after.items()} == {"SCU": 100, "UCU": 200, "CU": 200, "RU": 500}
    for at, side in ((0, bars.before), (1, bars.after)):
        for role, (start, n) in side.items():
            mine = sorted((f.low[at], f.n) for f in bars.flows if (f.before, f.after)[at] == role)
            assert mine[0][0] == start and sum(size for _, size in mine) == n
            assert all(a + size == pytest.approx(b) for (a, size), (b, _) in pairwise(mine)), "no gap"
    assert not [f for f in bars.flows if (f.before, f.after) == ("CU", "CU") or not f.n]


def test_no_number_stands_on_another():
    few = COUNTS | {"SCU": {"SCU": 18, "UCU": 0, "CU": 22, "RU": 0}}
    top = transfer(replace(made_up(), **vars(moves(few)))).axes[0]
    top.figure.canvas.draw()
    boxes = [t.get_window_extent() for t in top.texts if t.get_position()[0] == pytest.approx(0.055, abs=0.02)]
    boxes.sort(key=lambda box: -box.y0)
    assert len(boxes) >= 6 and all(a.y0 >= b.y1 - 3 for a, b in pairwise(boxes))


@pytest.mark.parametrize("null", [True, False])
def test_the_still_picture_draws_every_flow_and_says_what_is_left_out(null: bool):
    figure = transfer(made_up(null))
    top, below = figure.axes
    ribbons = [p for p in top.patches if isinstance(p, PathPatch)]
    rectangles = [p for p in top.patches if isinstance(p, Rectangle)]
    assert len(ribbons) == len(lay_out(made_up()).flows) and len(rectangles) == 8
    assert {p.get_facecolor() for p in rectangles} == {p.get_facecolor() for p in rectangles[:4]}
    text = words(figure)
    assert "5,000 that are CU both times are left out" in text and "410" in text and "scored by mask" in text
    assert ("Diamonds" in text) == null
    entries = [t.get_text() for t in below.get_legend().get_texts()]
    assert len(entries) == len(set(entries)) == 2 + null
    assert [t.get_text().split("\n")[0] for t in below.get_xticklabels()] == list(ROLE_COLOURS)


def test_a_role_without_units_takes_no_place():
    counts = {b: {a: 0 if "UCU" in (a, b) else n for a, n in row.items()} for b, row in COUNTS.items()}
    report = replace(made_up(False), **vars(moves(counts)))
    bars = lay_out(report)
    assert "UCU" not in bars.before and "UCU" not in bars.after and transfer(report).axes


def test_nothing_but_cu_is_refused():
    counts = {b: {a: 10 if a == b == "CU" else 0 for a in COUNTS} for b in COUNTS}
    with pytest.raises(BadInput, match="all CU"):
        picture(replace(made_up(), **vars(moves(counts))))


def test_a_still_picture_is_the_same_file_twice(tmp_path: Path):
    for suffix in ("png", "svg"):
        one, two = (picture(made_up()).save(tmp_path / f"{i}.{suffix}") for i in range(2))
        assert one.read_bytes() == two.read_bytes()


def test_the_interactive_one_draws_offline_and_is_text(open_page, tmp_path: Path):
    opened = open_page(picture(made_up(score="<b>mask</b></script>")).save(tmp_path / "sankey.html"))
    opened.page.locator(".sankey-link").first.wait_for(state="attached")
    bars = lay_out(made_up())
    assert opened.page.locator(".sankey-link").count() == len(bars.flows)
    assert opened.page.locator(".sankey-node").count() == 8
    assert opened.colours(".js-plotly-plot", at_least=10) >= 10, "four roles and their pale ribbons"
    labels = set(opened.page.locator(".sankey .node-label").all_text_contents())
    assert {"SCU before", "RU after"} <= labels
    assert "<b>mask</b>" in "".join(opened.page.locator(".words").all_text_contents())
    opened.page.locator(".sankey-link").first.hover(force=True)
    opened.page.locator(".hoverlayer text", has_text="units").first.wait_for()
    opened.check()
