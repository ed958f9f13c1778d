"""The report in a real browser: opens at once, asks for nothing, is readable on a phone, on paper and by keyboard."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from made_up import HOSTILE, PROVENANCE, made_up, made_up_table

from ssah_lens.show import report as report_module
from ssah_lens.show.run_folder import render
from ssah_lens.show.section import Table
from ssah_lens.show.sections import sections

PHONE = {"width": 390, "height": 844}
CONTRAST = """() => {
  const light = (c) => c.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = parts(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length) continue;
    const [a, b] = [light(parts(getComputedStyle(e).color).slice(0, 3)), light(ground(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(e.tagName + " " + e.textContent.trim().slice(0, 40));
  }
  return low;
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(made_up(), made_up_table(), PROVENANCE, tmp_path_factory.mktemp("run"))


def test_it_opens_in_two_seconds_and_asks_for_nothing(report: Path, open_page):
    assert report.stat().st_size < 15e6
    started = time.monotonic()
    opened = open_page(report)
    opened.page.wait_for_function("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert time.monotonic() - started < 2 * slow(), "the target holds on two idle cores"
    assert opened.page.locator("img").count() >= 10
    for i in range(opened.page.locator("figure img").count()):
        place = opened.page.locator("figure img").nth(i)
        assert place.evaluate("(e) => e.naturalWidth") > 600
    assert opened.colours("#ablate img", at_least=20) >= 20, "a figure is drawn, not only there"
    opened.check()


def slow() -> float:
    """How much slower than usual this machine is just now: tests run several at a time."""
    import os

    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)) * 2 if hasattr(os, "getloadavg") else 4.0


def test_hostile_prompts_are_text(report: Path, open_page):
    opened = open_page(report)
    text = opened.page.locator("main").inner_text()
    for hostile in HOSTILE[:2]:
        assert hostile in text
    assert opened.page.locator("main script, main iframe, main [onerror]").count() == 0
    opened.check()


def test_a_phone_shows_all_of_it(report: Path, open_page):
    opened = open_page(report, viewport=PHONE)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"] + 1, "nothing sticks out"
    assert page.evaluate("Math.min(...[...document.querySelectorAll('p, td, li')].map((e) => "
                         "parseFloat(getComputedStyle(e).fontSize)))") >= 12  # fmt: skip
    badge = page.locator(".badge").first
    assert badge.is_visible() and badge.bounding_box()["x"] + badge.bounding_box()["width"] <= PHONE["width"]
    opened.check()


def test_words_stand_out_from_their_ground(report: Path, open_page):
    """WCAG AA: a contrast of 4.5 for text."""
    for options in ({}, {"viewport": PHONE}):
        assert open_page(report, **options).page.evaluate(CONTRAST) == []


def test_it_is_read_by_keyboard(report: Path, open_page):
    page = open_page(report).page
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.getAttribute('href') || document.activeElement.className"))
    assert "#scorecard" in seen and "#ablate" in seen and "scroll" in seen, "links, then tables that scroll"
    order = [level for level in page.locator("h1, h2, h3").evaluate_all("(all) => all.map((e) => +e.tagName[1])")]
    assert order[0] == 1 and all(b - a <= 1 for a, b in pairwise(order)), "no heading is skipped"
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("img:not([alt]), img[alt='']").count() == 0


def test_the_scorecard_leads_to_the_section_and_the_explorer_opens(report: Path, open_page):
    opened = open_page(report)
    opened.page.locator("#scorecard a", has_text="H4").click()
    assert opened.page.url.endswith("#ablate")
    opened.page.locator("a", has_text="Open the unit explorer").click()
    opened.page.locator("body[data-ready]").wait_for(state="attached")
    assert opened.errors == []


def test_it_prints(report: Path, open_page):
    """With its figures, none of them cut in two, and without the links that lead nowhere on paper."""
    page = open_page(report).page
    pdf = page.pdf(format="A4", print_background=True)
    assert pdf[:5] == b"%PDF-" and len(pdf) > 100_000, "with its figures"
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.locator("figure").first.evaluate("(e) => getComputedStyle(e).breakInside") == "avoid"


def test_a_caption_is_text_as_well(report: Path, open_page):
    """Drawn in the picture it cannot be heard, and on a phone it is too small to read: there it stands below."""
    desk, phone = open_page(report).page, open_page(report, viewport=PHONE).page
    for page in (desk, phone):
        assert page.locator("figcaption").count() == page.locator("figure img").count()
        assert "60 harmful prompts" in page.locator("#ablate figcaption").nth(1).inner_text()
    assert desk.locator("figcaption").first.bounding_box()["width"] <= 1
    box = phone.locator("#ablate figcaption").first.bounding_box()
    assert box["width"] > 300 and box["height"] > 30
    assert phone.locator("#ablate img").first.bounding_box()["width"] >= PHONE["width"] - 1, "as wide as the screen"


def test_a_section_says_which_hypothesis_it_tests(report: Path, open_page):
    page = open_page(report).page
    said = page.locator("#ablate .tested").inner_text()
    assert "supported" in said and "H4: A few units carry the choice to refuse." in said
    assert page.locator("#refusal .tested").count() == 0
    assert "H4 (few units) is supported and H5 (freezing) is not settled" in page.locator(".lead").inner_text()


def test_the_widest_table_fits_on_paper(open_page, tmp_path: Path):
    """Paper does not scroll: what stands beyond its edge is lost."""
    columns = ("name", *(f"refused, random sets {i}" for i in range(12)))
    table = Table("Many columns", columns, tuple((f"set {i}", *["0.97 [0.89, 0.99] n=60"] * 12) for i in range(3)))
    section = replace(sections(made_up())[0], tables=(table,))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(report_module, "sections", lambda results: [section])
        path = report_module.write_report(made_up(), {}, PROVENANCE, tmp_path / "r.html")
    page = open_page(path, viewport={"width": 718, "height": 1000}).page  # A4 without its margins
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 719
