"""The unit explorer in a real browser: drawn, searched, filtered, opened; offline, and hostile text is text."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import made_up_table

from ssah_lens.errors import BadInput
from ssah_lens.results import EffectAgreement, PatchResult, Results, Snippet, UnitContext
from ssah_lens.show.explorer import explorer
from ssah_lens.show.run_folder import exact_effects
from ssah_lens.units import Kind, Role, UnitTable

HOSTILE = ("<script>alert(1)</script>", "</script>", "<bos>", "<img src=x onerror=alert(1)>", "😀", "שלום", "x" * 300,
           "\n", " the", "{{ 7 * 7 }}")  # fmt: skip


def contexts() -> list[UnitContext]:
    snippet = Snippet(HOSTILE, tuple(np.linspace(-1.0, 2.0, len(HOSTILE)).tolist()), len(HOSTILE) - 1)
    neighbours = (("mlp", 2, 7, 0.75), ("head", 0, 1, -0.5))
    return [UnitContext("mlp", 1, 5, 0.123456, {"harmful": (snippet, snippet), "harmless": ()}, neighbours)]


@pytest.fixture
def opened(open_page, tmp_path: Path):
    table = made_up_table()
    effects = {"exact <effect>": {k: np.where(table.safety[k] > 0, table.safety[k], np.nan) for k in Kind}}
    path = explorer(table, contexts(), effects, "Units </script> of a model").save(tmp_path / "explorer.html")
    found = open_page(path)
    found.page.locator("body[data-ready]").wait_for(state="attached")
    found.table = table
    return found


def unit_of(opened) -> str | None:
    return opened.page.locator("#details").get_attribute("data-unit")


def test_every_unit_is_drawn_and_nothing_is_asked_for(opened):
    assert opened.page.locator("body").get_attribute("data-ready") == str(opened.table.grid.n_units)
    assert opened.colours("#map", at_least=6) >= 6, "four roles, axes, ground"
    assert opened.page.locator("#title").inner_text() == "Units </script> of a model"
    for role in Role:
        assert f"{role} ({len(opened.table.roles[role])})" in opened.page.locator("#roles").inner_text()
    opened.check()


def test_a_click_on_a_point_opens_its_unit(opened):
    layer, index = np.argwhere(opened.table.roles[Role.SCU].masks[Kind.MLP])[0]
    name = f"L{layer}N{index}"
    x, y = opened.page.evaluate(f"explorer.where('{name}')")
    opened.page.locator("#map").click(position={"x": x, "y": y})
    assert unit_of(opened) == name
    text = opened.page.locator("#details").inner_text()
    assert f"{opened.table.safety[Kind.MLP][layer, index]:.4g}".rstrip("0") in text and "SCU: safety critical" in text
    opened.check()


def test_numbers_are_those_of_the_table(opened):
    for kind, layer, index in ((Kind.MLP, 2, 39), (Kind.HEAD, 0, 0), (Kind.HEAD, 2, 3)):
        name = f"L{layer}{'N' if kind is Kind.MLP else 'H'}{index}"
        opened.page.evaluate(f"explorer.open('{name}')")
        cells = opened.page.locator("#details dd").all_inner_texts()
        safety, utility = opened.table.safety[kind][layer, index], opened.table.utility[kind][layer, index]
        for value in (safety - utility, safety, utility):
            assert any(_close(c, value) for c in cells), (name, value, cells)
        role = next(r for r, u in opened.table.roles.items() if u.masks[kind][layer, index])
        assert str(role) in opened.page.locator("#details h2").inner_text()
        assert ("not measured" in cells) == (safety <= 0), cells
    below = (opened.table.safety[Kind.HEAD] < opened.table.safety[Kind.HEAD][2, 3]).mean() * 12 / 11
    assert any(c.endswith(f"above {below * 100:.1f}%" if below < 1 else "above >99.9%") for c in cells)


def _close(text: str, value: float) -> bool:
    try:
        return abs(float(text.split()[0]) - value) <= 6e-4 * max(abs(value), 1e-3)
    except ValueError:
        return False


def test_confidence_and_exact_effect_of_a_run_are_shown(open_page, tmp_path: Path):
    """Both are on one's mind when a unit is opened: would it keep its role, and what does it really do?"""
    table = made_up_table()
    sure = {k: np.full(table.safety[k].shape, 0.625) for k in Kind}
    labels = ("neuron 1.5", "head 2.3", "neuron 9.9")  # the last one is of a larger model
    found = EffectAgreement("guess", "exact effect", "", "", labels, (0.25, -0.75, 1.0), (0.2, 0.1, 0), None, {}, (), 4)
    effects = exact_effects(Results(patch=PatchResult((), (), (found,), found)), table)
    path = explorer(replace(table, confidence=sure), (), effects).save(tmp_path / "e.html")
    page = open_page(path).page
    page.locator("body[data-ready]").wait_for(state="attached")
    for name, effect in (("L1N5", "0.25"), ("L2H3", "-0.75"), ("L0N0", "not measured")):
        page.evaluate(f"explorer.open('{name}')")
        told = page.inner_text("#details")
        assert "0.625" in told and effect in told and "exact effect on the choice" in told
    assert exact_effects(Results(), table) == {}


def test_search_finds_units_and_says_what_there_is(opened):
    page = opened.page
    for text, name in (("L1N5", "L1N5"), ("layer 2, head 3", "L2H3"), ("0.39", "L0N39"), ("l2h0", "L2H0")):
        page.fill("#search", text)
        page.keyboard.press("Enter")
        assert unit_of(opened) == name
    for text in ("L3N0", "L0N40", "<b>", "1"):
        page.fill("#search", text)
        page.keyboard.press("Enter")
        assert f"No unit '{text}': there are layers 0-2, neurons N0-N39, heads H0-H3" in page.inner_text("#message")
    opened.check()


def test_filters_leave_the_right_number(opened):
    page, table = opened.page, opened.table
    count = lambda: int(page.inner_text("#listed").split(" of ")[0].replace(",", ""))
    assert count() == table.grid.n_units
    page.uncheck("#roles input[value=CU]")
    assert count() == table.grid.n_units - len(table.roles[Role.CU])
    page.select_option("#kind", "1")
    not_cu = ~table.roles[Role.CU].masks[Kind.HEAD]
    assert count() == not_cu.sum()
    page.fill("#last", "0")
    page.locator("#last").dispatch_event("change")
    assert count() == not_cu[0].sum()
    page.check("#roles input[value=CU]")
    assert count() == 4
    page.select_option("#column", label="exact <effect>")
    assert count() == (table.safety[Kind.HEAD][0] > 0).sum()
    opened.check()


def test_the_table_opens_units_by_keyboard(opened):
    first = opened.page.locator("#list button").first
    name = first.inner_text()
    first.focus()
    opened.page.keyboard.press("Enter")
    assert unit_of(opened) == name
    difference = {k: opened.table.safety[k] - opened.table.utility[k] for k in Kind}
    best = [f"L{a}{n}{b}" for k, n in ((Kind.MLP, "N"), (Kind.HEAD, "H"))
            for a, b in [np.unravel_index(np.abs(difference[k]).argmax(), difference[k].shape)]]  # fmt: skip
    assert name in best


def test_everything_is_reached_by_keyboard_alone(opened):
    """Search, filter and open without a mouse; arrow keys on the map go from unit to unit."""
    page = opened.page
    focused = lambda: page.evaluate("document.activeElement.id || document.activeElement.value")
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(focused())
        if reached[-1] == "CU":
            page.keyboard.press("Space")
        if reached[-1] == "search":
            page.keyboard.type("L1N5")
            page.keyboard.press("Enter")
            assert unit_of(opened) == "L1N5"
        if reached[-1] == "map":
            break
    assert {"SCU", "CU", "kind", "column", "scale", "first", "last", "share", "search", "map"} <= set(reached)
    assert page.locator("#listed").inner_text().startswith(str(132 - len(opened.table.roles[Role.CU]))), "CU left out"
    page.keyboard.press("ArrowUp")  # what is open is not shown: the largest of what is
    layer = lambda: int(unit_of(opened)[1 : unit_of(opened).index("N" if "N" in unit_of(opened) else "H")])
    first, at = unit_of(opened), layer()
    height = lambda: page.evaluate(f"explorer.where('{unit_of(opened)}')[1]")
    before = height()
    page.keyboard.press("ArrowDown")
    assert unit_of(opened) != first and layer() == at and height() >= before
    page.keyboard.press("ArrowLeft" if at else "ArrowRight")
    assert layer() == (at - 1 if at else 1)
    opened.check()


def test_a_phone_shows_what_was_opened(open_page, tmp_path: Path):
    found = open_page(explorer(made_up_table(), contexts()).save(tmp_path / "e.html"),
                      viewport={"width": 390, "height": 844})  # fmt: skip
    page = found.page
    page.locator("body[data-ready]").wait_for(state="attached")
    inside = "(() => { const b = document.getElementById('details').getBoundingClientRect();" \
             "return b.top < innerHeight - 100 && b.bottom > 100; })()"  # fmt: skip
    x, y = page.evaluate("explorer.where('L1N5')")
    page.locator("#map").click(position={"x": x, "y": y})
    assert unit_of(found) and page.evaluate(inside)
    name = page.locator("#list button").last
    assert name.bounding_box()["height"] < 25, "a name is not broken in two"
    name.click()
    assert unit_of(found) == name.inner_text() and page.evaluate(inside)
    assert page.evaluate("document.documentElement.scrollWidth") <= 391
    found.check()


def test_contexts_are_text_and_neighbours_lead_on(opened):
    page = opened.page
    page.evaluate("explorer.open('L1N5')")
    text = page.inner_text("#details")
    for token in HOSTILE:
        assert token.strip() in text, token
    assert page.locator("#details script, #details img, #details bos").count() == 0
    assert "0.123" in text and "Most active on harmless prompts" in text
    assert page.locator(".snippet .peak").count() == 2
    assert page.locator(".snippet").first.inner_text().strip().endswith("2") and "orange is above zero" in text
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), "nothing sticks out"
    page.locator("#details button", has_text="L0H1").click()
    assert unit_of(opened) == "L0H1" and "No texts are kept" in page.inner_text("#details")
    opened.check()


def test_an_address_opens_a_unit(open_page, tmp_path: Path):
    path = explorer(made_up_table()).save(tmp_path / "e.html")
    found = open_page(path)
    found.page.goto(path.as_uri() + "#L2H1")
    found.page.reload()
    found.page.locator("body[data-ready]").wait_for(state="attached")
    assert unit_of(found) == "L2H1"


def test_a_notebook_shows_the_same_page(open_page):
    html = explorer(made_up_table(), contexts())._repr_html_()
    found = open_page(f"<!DOCTYPE html><html><body>{html}{html}</body></html>")
    for i in range(2):
        frame = found.page.frame_locator("iframe").nth(i)
        found.page.locator("iframe").nth(i).scroll_into_view_if_needed()
        frame.locator("body[data-ready]").wait_for(state="attached")
        assert found.colours("#map", frame, 6) >= 6
    found.check()


def test_a_large_model_stays_usable(open_page, tmp_path: Path):
    """300,000 units: a page under 15 MB that is drawn and redrawn in the time of a blink or two."""
    table = made_up_table(32, 9344, 32)
    assert table.grid.n_units >= 300_000
    path = explorer(table).save(tmp_path / "big.html")
    assert path.stat().st_size < 15e6
    started = time.monotonic()
    found = open_page(path)
    found.page.locator("body[data-ready]").wait_for(state="attached")
    assert time.monotonic() - started < 10
    milliseconds = found.page.evaluate(
        "(() => { const t = performance.now(); const s = document.getElementById('share'); s.value = '0.1';"
        "s.dispatchEvent(new Event('change')); s.value = '1'; s.dispatchEvent(new Event('change'));"
        "return performance.now() - t; })()"
    )
    assert milliseconds < 4000, "two redraws of the map and the table"
    found.check()


# ---- what needs no browser


def test_a_column_of_another_shape_is_refused():
    table = made_up_table()
    with pytest.raises(BadInput, match="column 'mine' has no mlp values of shape"):
        explorer(table, effects={"mine": {Kind.MLP: np.zeros((2, 2)), Kind.HEAD: np.zeros((3, 4))}})


def test_a_context_that_cannot_be_is_refused():
    table = made_up_table()
    with pytest.raises(BadInput, match="the model does not have"):
        explorer(table, [UnitContext("mlp", 3, 0, None, {})])
    for bad in (Snippet(("a",), (1.0, 2.0), 0), Snippet(("a",), (float("nan"),), 0), Snippet(("a",), (1.0,), 1)):
        with pytest.raises(BadInput, match="a snippet"):
            explorer(table, [UnitContext("mlp", 0, 0, None, {"harmful": (bad,)})])


def test_the_page_holds_no_markup_of_the_data_and_is_the_same_twice():
    table = made_up_table()
    table = UnitTable(table.grid, table.safety, table.utility, table.roles, {"model": "</script><b>", "score": "<i>"})
    one, two = (explorer(table, contexts(), title="</title><b>").document for _ in range(2))
    assert one == two
    assert one.count("</script") == 1 and "<b>" not in one and "</title><b>" not in one
