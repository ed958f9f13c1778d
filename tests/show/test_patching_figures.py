"""Patching pictures: every cell where it belongs, any token on an axis, nothing drawn that cannot be read."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssah_lens.errors import BadInput
from ssah_lens.results import PatchMap
from ssah_lens.show.patching_figures import grid, heatmap, neurons, picture
from ssah_lens.show.terminal import strongest_cells
from ssah_lens.stats import Estimate

HOSTILE = ("<s>", "$x$", "\n", "😀", "שלום", "x" * 300, "<b>b</b>", "$", "a |b")


def made_up(axes: tuple[str, ...], shape: tuple[int, ...], site: str = "resid", noising: bool = False) -> PatchMap:
    """Every cell holds its own flat index, divided by 100, counted from the effect of changing nothing."""
    names = {"layer": "layer", "unit": "unit", "pos": "token "}
    labels = {
        a: tuple(f"{names[a] if a == 'pos' else ''}{i}" for i in range(n)) for a, n in zip(axes, shape, strict=True)
    }
    values = (np.arange(np.prod(shape)).reshape(shape) / 100 + noising).tolist()
    metric = "logit difference, refusing minus fulfilling tokens"
    ends = Estimate(5.0, None, None, 1), Estimate(-2.0, None, None, 1)
    words = metric, ("I",) * 6, ("Sure",), "its value in the clean run"
    return PatchMap("m", site, noising, *words, axes, labels, values, None, None, *ends, 1, 9, 9)


def test_cells_stand_where_their_labels_say():
    cells = grid(made_up(("layer", "pos"), (3, 4)))
    assert cells.rows == ("0", "1", "2") and cells.columns == tuple(f"token {i}" for i in range(4))
    assert cells.values[2, 1] == 0.09 and cells.reach == 0.11
    drawn = heatmap(made_up(("layer", "pos"), (3, 4))).axes[0]
    assert [t.get_text() for t in drawn.get_xticklabels()] == list(cells.columns)
    np.testing.assert_allclose(drawn.images[0].get_array(), cells.values)


@pytest.mark.parametrize("noising", [False, True])
def test_positions_that_cannot_differ_are_left_out_and_said_so(noising: bool):
    base = made_up(("layer", "pos"), (2, 6), noising=noising)
    values = np.array(base.values)
    values[:, :2] = noising
    values[:, 4] = np.nan
    shown = picture(replace(base, values=np.where(np.isnan(values), None, values.astype(object)).tolist()))
    drawn = shown.figure.axes[0]
    assert [t.get_text() for t in drawn.get_xticklabels()] == [f"token {i}" for i in range(2, 6)]
    assert "The first 2 positions" in " ".join(shown.figure._supxlabel.get_text().split())
    low, high = drawn.images[0].get_clim()
    assert (low + high) / 2 == pytest.approx(float(noising)), "white is where nothing changes"
    assert drawn.images[0].get_array().mask[:, 2].all()


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        (("<|im_end|>", "a", "b"), "token"),
        (("<|im_end|>", "raid |paint", "b"), "token (two where the prompts differ: clean | corrupted)"),
        (("-3", "-2", "<|im_end|>"), "token, or its place from the end where the pairs have different ones"),
    ],
)
def test_an_axis_says_what_stands_on_it(tokens: tuple[str, ...], told: str):
    shown = picture(replace(made_up(("layer", "pos"), (2, 3)), labels={"layer": ("0", "1"), "pos": tokens}))
    assert shown.figure.axes[0].get_xlabel() == told


def test_both_tokens_of_a_place_where_the_prompts_differ_can_be_read():
    labels = {"layer": ("0", "1"), "pos": (" immigrants | eggs", "an" * 20 + " |" + "bo" * 20, " |")}
    shown = picture(replace(made_up(("layer", "pos"), (2, 3)), labels=labels))
    ticks = [t.get_text() for t in shown.figure.axes[0].get_xticklabels()]
    assert ticks == ["immigrants | eggs", "anananananana… | bobobobobobob…", "|"]
    axis = shown.interactive().layout.xaxis
    assert list(axis.ticktext) == ticks and axis.title.text.replace("<br>", " ") == shown.figure.axes[0].get_xlabel()


def test_any_token_can_stand_on_an_axis(tmp_path: Path):
    base = made_up(("layer", "pos"), (2, len(HOSTILE)))
    shown = picture(replace(base, labels={"layer": ("0", "1"), "pos": HOSTILE}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("a.png", "a.svg", "a.pdf", "a.html"):
            assert shown.save(tmp_path / name).stat().st_size > 5000
    ticks = [t.get_text() for t in shown.figure.axes[0].get_xticklabels()]
    assert ticks[:5] == ["<s>", "$x$", "↵", "😀", "שלום"]
    labels = shown.interactive().layout.xaxis.ticktext
    assert "&lt;b&gt;b&lt;/b&gt;" in labels and not any("<" in t for t in labels)
    assert all(len(t) < 60 for t in ticks)


def test_the_strongest_heads_are_told():
    base = made_up(("layer", "unit"), (3, 4), "head")
    texts = {t.get_text() for t in picture(base).figure.axes[0].texts}
    assert texts == {"0.07", "0.08", "0.09", "0.10", "0.11"}
    assert not picture(made_up(("layer", "unit"), (3, 32), "head")).figure.axes[0].texts, "no room in 32 columns"


def test_units_by_position_keep_the_strongest():
    base = made_up(("layer", "unit", "pos"), (10, 4, 3), "head")
    cells = grid(base)
    assert len(cells.rows) == 24 and cells.rows[-1] == "9.3" and cells.rows[0] == "4.0"
    np.testing.assert_allclose(cells.values[-1], [1.17, 1.18, 1.19])


@pytest.mark.parametrize("layers", [1, 3])
def test_neurons_are_named_where_they_stand_out(layers: int):
    base = made_up(("layer", "unit"), (layers, 200), "neuron")
    values = np.zeros((layers, 200))
    values[layers - 1, 7], values[0, 150] = 0.5, -0.9
    drawn = neurons(replace(base, values=values.tolist())).axes[0]
    named = {t.get_text() for t in drawn.texts}
    assert {"7", "150"} <= named if layers == 1 else {"2.7", "0.150"} <= named
    assert len(drawn.collections[0].get_offsets()) == layers * 200


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": {"layer": ("0",), "pos": ("a",) * 4}}, r"shape \(3, 4\) has labels for \(1, 4\)"),
        ({"values": [[None] * 4] * 3}, "no cell of the map is finite"),
        ({"axes": ("pos", "layer"), "labels": {"pos": ("a",) * 3, "layer": ("0",) * 4}}, "no picture for axes"),
    ],
)
def test_maps_that_cannot_be_drawn_are_refused(change: dict, match: str):
    with pytest.raises(BadInput, match=match):
        picture(replace(made_up(("layer", "pos"), (3, 4)), **change))


def test_a_still_picture_is_the_same_file_twice(tmp_path: Path):
    for suffix in ("png", "svg", "pdf"):
        one, two = (picture(made_up(("layer", "pos"), (3, 4))).save(tmp_path / f"{i}.{suffix}") for i in range(2))
        assert one.read_bytes() == two.read_bytes()


def test_other_endings_are_refused(tmp_path: Path):
    with pytest.raises(BadInput, match=r"allowed are .png, .svg, .pdf, .html"):
        picture(made_up(("layer", "pos"), (3, 4))).save(tmp_path / "a.gif")


def test_an_approximation_is_called_one():
    base = replace(made_up(("layer", "pos"), (3, 4)), method="attribution patching")
    assert "guessed by attribution patching" in picture(base).figure._suptitle.get_text().replace("\n", " ")


def test_hover_tells_effect_and_interval():
    base = made_up(("layer", "pos"), (3, 4))
    (heat,) = picture(replace(base, low=base.values, high=base.values)).interactive().data
    assert heat.text[2][1] == "layer 2<br>token token 1 (position 1)<br>effect 0.090 [0.090, 0.090]"


def test_the_terminal_lists_the_strongest():
    rows = strongest_cells(made_up(("layer", "pos"), (3, 4)), 2)
    assert rows == [["2", "token 3", "0.110"], ["2", "token 2", "0.100"]]
    assert strongest_cells(made_up(("layer", "unit"), (3, 4), noising=True), 1) == [["2", "3", "1.110"]]


def test_a_map_survives_json():
    from dataclasses import asdict

    kept = json.loads(json.dumps(asdict(made_up(("layer", "pos"), (3, 4))), allow_nan=False))
    assert kept["axes"] == ["layer", "pos"] and kept["values"][2][3] == 0.11


# ---- in a browser


def test_an_interactive_map_draws_offline(open_page, tmp_path: Path):
    base = made_up(("layer", "pos"), (8, len(HOSTILE)))
    shown = picture(replace(base, labels={"layer": tuple("01234567"), "pos": HOSTILE}))
    opened = open_page(shown.save(tmp_path / "map.html"))
    opened.page.locator(".heatmaplayer image").wait_for(state="attached")
    assert opened.colours(".js-plotly-plot", at_least=10) >= 10
    axis = opened.page.locator(".xtick text").all_text_contents()
    assert "<b>b</b>" in axis and "$x$" in axis
    opened.check()


def test_an_interactive_map_is_a_page_for_a_phone(open_page, tmp_path: Path):
    """Its title and caption are text that wraps; the drawing takes the width there is."""
    opened = open_page(picture(made_up(("layer", "pos"), (8, 6))).save(tmp_path / "map.html"),
                       viewport={"width": 390, "height": 844}, is_mobile=True)  # fmt: skip
    opened.page.locator(".heatmaplayer image").wait_for(state="attached")
    assert opened.page.evaluate("window.innerWidth") == 390, "laid out for this screen"
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 391
    assert opened.page.title() == "Patching the residual stream before each block" == opened.page.inner_text("h1")
    assert "n = 1 pair of prompts" in opened.page.inner_text("p.words")
    assert opened.page.locator("html").get_attribute("lang") == "en"
    assert opened.page.locator(".annotation, .gtitle").count() == 0, "neither is drawn a second time"
    opened.check()
