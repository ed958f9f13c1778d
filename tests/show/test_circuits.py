"""What CircuitsVis views refuse before drawing, and what they write."""

from __future__ import annotations

import numpy as np
import pytest

from ssah_lens.errors import BadInput
from ssah_lens.show import circuits
from ssah_lens.show.page import TRUST, Page, as_json, finite
from ssah_lens.show.tokens import WORD_JOINER, drawable, no_markup, visible

PATTERN = np.tril(np.ones((1, 2, 2))) / np.array([[1], [2]])
NAN = float("nan")


@pytest.mark.parametrize(
    ("draw", "match"),
    [
        (lambda: circuits.attention(["a"], PATTERN, ["L0H0"]), "does not fit 1 heads and 1 tokens"),
        (lambda: circuits.attention(["a", "b"], PATTERN, ["x", "y"]), "does not fit 2 heads"),
        (lambda: circuits.attention(["a", "b"], PATTERN * NAN, ["x"]), "4 of 4 attention weights are not finite"),
        (lambda: circuits.coloured(["a", "b"], np.ones(3), "t", "w"), "2 tokens need as many values"),
        (lambda: circuits.coloured(["a"], np.array([NAN]), "t", "w"), "1 of 1 values are not finite"),
        (lambda: circuits.coloured([], np.ones(0), "t", "w"), "0 tokens"),
        (lambda: circuits.coloured([7], np.ones(1), "t", "w"), "tokens are texts, got int"),
        (lambda: circuits.neuron_activations([["a"]], [np.ones((1, 2))], ["u"]), r"\(1, 2\) for 1 tokens and 1 units"),
        (lambda: circuits.neuron_activations([["a"]], [], ["u"]), "activations of 0"),
        (lambda: circuits.top_tokens([], "w"), "at least one unit"),
        (lambda: circuits.top_tokens([("u", ["a"], np.ones(2))], "w"), "1 tokens need as many"),
        (lambda: circuits.log_probs("", ["a"], np.array([0.5]), np.zeros(1), [["b"]], np.zeros((1, 1))), "above 0"),
        (lambda: circuits.log_probs("", ["a"], np.array([-1.0]), np.zeros(2), [["b"]], np.zeros((1, 1))), "do not fit"),
        (lambda: circuits.page([], "t"), "at least one view"),
        (lambda: finite(["a"], "values"), "not an array of numbers"),
    ],
)
def test_what_would_be_drawn_wrongly_is_refused(draw, match: str):
    with pytest.raises(BadInput, match=match):
        draw()


def test_values_keep_five_digits_and_equal_strength_is_equal_colour():
    (part,) = circuits.coloured(["a", "b", "c"], np.array([1.23456789, -2.0, 0.0]), "t", "w").parts
    assert part.props["values"] == [1.2346, -2.0, 0.0]
    assert (part.props["minValue"], part.props["maxValue"]) == (-2.0, 2.0)


def test_a_notebook_gets_a_closed_frame_and_words_for_when_it_is_taken_away():
    view = circuits.coloured(["<b>", "x"], np.array([1.0, -1.0]), "<i>t", "w")
    html = view._repr_html_()
    assert html.count("<iframe") == html.count("</iframe>") == 1 and 'sandbox="allow-scripts"' in html
    assert TRUST in html and "<script" not in html and "<b>" not in html and "&lt;b&gt;" in html
    assert html == view._repr_html_(), "nothing random: a notebook that is run again does not change"
    assert len(repr(view)) < 200, "a notebook keeps the plain form beside the drawn one"
    assert len(html) < 900_000, "the library is compressed"


def test_the_library_stands_once_in_a_page_of_several():
    view = circuits.coloured(["a"], np.ones(1), "t", "w")
    one, four = (len(circuits.page([view] * n, "t").document) for n in (1, 4))
    assert four - one < 3000


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        Page("t", "<html></html>", 10).save(tmp_path / "file" / "x.html")


def test_json_cannot_leave_its_script():
    assert as_json(["</script>", "\u2028"]) == '["\\u003c/script>","\\u2028"]'


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("\n", "↵"), (" the", " the"), ("  ", "␣␣"), ("", "∅"), ("a\u202eb\x00", "a\ufffdb\ufffd"), ("\t", "⇥"),
        ("👩\u200d🍳", "👩\u200d🍳"), ("x" * 500, "x" * 399 + "…"), ("<bos>", "<bos>"),
    ],
)  # fmt: skip
def test_tokens_are_made_visible(token: str, shown: str):
    assert visible(token) == shown


def test_markup_is_defused_and_looks_the_same():
    assert no_markup("<b>&lt;").replace(WORD_JOINER, "") == "<b>&lt;"
    assert "<b" not in no_markup("<b>") and "&l" not in no_markup("&lt;")


def test_figures_get_only_what_their_font_can_draw():
    assert drawable(" ok ", 9) == "ok" and drawable("漢x", 9) == "\ufffdx" and drawable("$x$", 9) == "$x$"
