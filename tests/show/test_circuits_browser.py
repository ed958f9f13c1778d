"""CircuitsVis views in a real browser: drawn, offline, and hostile tokens are text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_report_browser import CONTRAST

from ssah_lens.show import circuits
from ssah_lens.show.tokens import WORD_JOINER, visible

HOSTILE = ("<script>alert(1)</script>", "</script>", "<bos>", "<img src=x onerror=alert(1)>", "&amp;", "😀", "שלום",
           "x" * 300, "\n", " the", "a\u202eb", "</iframe>", "'\"`${1}")  # fmt: skip
N = len(HOSTILE)


def views() -> dict[str, circuits.View]:
    rng = np.random.default_rng(0)
    pattern = np.tril(rng.random((2, N, N)))
    pattern /= pattern.sum(-1, keepdims=True)
    signed = rng.normal(size=N)
    likely = np.log(np.sort(rng.dirichlet(np.ones(5), N))[:, ::-1])
    return {
        "attention": circuits.attention(HOSTILE, pattern, ["L1H2", "<b>L2H0"]),
        "coloured": circuits.coloured(HOSTILE, signed, "Which <i>tokens", "n = 1 </script> prompt."),
        "neurons": circuits.neuron_activations(
            [HOSTILE, HOSTILE[:5]], [rng.normal(size=(N, 3)), rng.normal(size=(5, 3))], ["L0N1", "L1N2", "<L2N3>"]
        ),
        "top": circuits.top_tokens(
            [("L0N1", HOSTILE[:4], np.array([4.0, 3, 2, 1])), ("<L2N3>", HOSTILE[4:8], -np.ones(4))], "n = 3 prompts."
        ),
        "log_probs": circuits.log_probs(
            "\n", HOSTILE, likely[:, 1], np.ones(N, dtype=int), [HOSTILE[:5]] * N, likely
        ),
    }  # fmt: skip


def drawn(opened, frame=None, parts: int = 1) -> None:
    (frame or opened.page).locator(f"body[data-rendered='{parts}']").wait_for(state="attached")


@pytest.mark.parametrize("name", ["attention", "coloured", "neurons", "top", "log_probs"])
def test_a_saved_view_draws_offline(name: str, open_page, tmp_path: Path):
    view = views()[name]
    opened = open_page(view.save(tmp_path / "view.html"))
    drawn(opened, parts=len(view.parts))
    assert opened.colours("#view-0 canvas" if name == "attention" else "#view-0", at_least=6) >= 6
    assert opened.page.locator("#view-0 script, #view-0 img, #view-0 bos, #view-0 i").count() == 0
    assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), "nothing sticks out"
    opened.check()


@pytest.mark.parametrize("name", ["attention", "coloured", "neurons", "top", "log_probs"])
def test_tokens_stand_out_from_their_colour(name: str, open_page, tmp_path: Path):
    """WCAG AA, on every strength of the colours."""
    view = views()[name]
    opened = open_page(view.save(tmp_path / "view.html"))
    drawn(opened, parts=len(view.parts))
    opened.page.wait_for_timeout(300)  # the views write themselves a moment later
    assert opened.page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("name", ["coloured", "neurons", "log_probs"])
def test_every_token_is_text(name: str, open_page, tmp_path: Path):
    opened = open_page(views()[name].save(tmp_path / "view.html"))
    drawn(opened)
    shown = opened.page.locator("#view-0").inner_text().replace(WORD_JOINER, "").replace("\u00a0", " ")
    for token in HOSTILE:
        assert visible(token).strip() in shown, token


def test_a_tooltip_shows_the_token_as_it_is(open_page, tmp_path: Path):
    opened = open_page(circuits.coloured(["<bos>", "x"], np.array([1.0, -1.0]), "t", "w").save(tmp_path / "v.html"))
    drawn(opened)
    opened.page.locator("#view-0 span span").first.hover()
    tip = opened.page.locator("#view-0 strong")
    tip.wait_for()
    assert tip.inner_text().replace(WORD_JOINER, "") == "<bos>"


def test_several_views_live_on_one_page(open_page, tmp_path: Path):
    some = list(views().values())
    opened = open_page(circuits.page(some, "All views").save(tmp_path / "all.html"))
    n = sum(len(v.parts) for v in some)
    drawn(opened, parts=n)
    assert all(opened.colours(f"#view-{i}", at_least=3) >= 3 for i in range(n))
    opened.check()


def test_a_notebook_shows_several_in_frames(open_page):
    """What JupyterLab and VS Code put into their page: two outputs, whose frames know nothing of each other."""
    html = "".join(f"<div>{v._repr_html_()}</div>" for v in (views()["coloured"], views()["attention"]))
    opened = open_page(f"<!DOCTYPE html><html><body>{html}</body></html>")
    for i, selector in enumerate(("#view-0", "#view-0 canvas")):
        frame = opened.page.frame_locator("iframe").nth(i)
        drawn(opened, frame)
        assert opened.colours(selector, frame, 6) >= 6
    assert opened.page.locator("script, img").count() == 0, "nothing escapes into the notebook's own page"
    opened.check()
