"""The report, from made-up results: every number shown, nothing untrusted let through, nothing overclaimed."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import HOSTILE, PROVENANCE, around, behaviour, made_up, made_up_freeze, made_up_table, made_up_units, rate

from ssah_lens.results import AlignResult, RefusalResult, Results, Utility, Verdict
from ssah_lens.show import figures, report, words
from ssah_lens.show.report import write_report
from ssah_lens.show.run_folder import copy_figures, draw, render
from ssah_lens.show.text import clean, interval, number, percent


class Page(HTMLParser):
    """Elements, attributes and text as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""


@pytest.fixture(scope="module")
def results() -> Results:
    return made_up()


@pytest.fixture(scope="module")
def folder(results: Results, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert render(results, made_up_table(), PROVENANCE, out) == out / "report.html"
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


# ---- the page


def test_the_scorecard_shows_every_number(page: Page, results: Results) -> None:
    for row in results.scorecard:
        assert row.claim in page.text and row.reading in page.text and row.unit in page.text
        assert str(row.verdict) in page.text
        for e in (row.effect, row.control):
            if e is not None:
                assert interval(e) in page.text and f"n={e.n}" in page.text
    assert "0.65 [0.53, 0.77]" in page.text and "-0.04 [-0.11, 0.03]" in page.text


def test_hypotheses_without_a_test_are_named(page: Page) -> None:
    line = page.text[page.text.index("Not tested in this run") :].split(".")[0]
    assert all(h in line for h in ("H1", "H2", "H3", "H6", "H7")) and "H4" not in line and "H5" not in line


def test_hostile_text_is_escaped(folder: Path, page: Page) -> None:
    source = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in source and "</script" not in source and "<img src=x" not in source
    assert source.count("</title>") == 1 and source.count("</style>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in source
    assert all(h in page.text for h in HOSTILE[:2]), "shown as text, templates in it not run"
    assert "\u202e" not in source
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert not page.open, "every element is closed"


def test_nothing_is_asked_of_the_network(page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action"):
            value = attributes.get(name) or ""
            assert value in ("", "explorer.html") or value.startswith(("data:image/png;base64,", "#"))


def test_every_image_has_a_telling_text(page: Page) -> None:
    images = [a for tag, a in page.elements if tag == "img"]
    assert len(images) == len(draw(made_up(), made_up_table()))
    assert all(len(a.get("alt") or "") > 20 for a in images)


def test_links_lead_somewhere(folder: Path, page: Page) -> None:
    ids = {a["id"] for _, a in page.elements if "id" in a}
    links = {a["href"] for tag, a in page.elements if tag == "a"}
    assert {x.removeprefix("#") for x in links if x.startswith("#")} <= ids
    assert {x for x in links if not x.startswith("#")} == {"explorer.html"} and (folder / "explorer.html").is_file()


def test_the_paper_stands_beside_ours(page: Page) -> None:
    for text in ("10.0 → 66.0", "0.19 → 2.96", "3.3 → 71.7", "compare directions"):
        assert text in page.text


def test_provenance_is_told(page: Page) -> None:
    for text in ("2.13.0", "5af5" * 16, "abc123", "3.0 min", "8.5 min", "ssah-lens study --config config.toml"):
        assert text in page.text


def test_figures_are_whole_files(folder: Path, results: Results) -> None:
    names = {p.name for p in (folder / "figures").iterdir()}
    drawn = {n for n in draw(results, made_up_table())}
    assert names == {f"{n}.{ending}" for n in drawn for ending in ("png", "svg")}
    begins = {"png": b"\x89PNG", "svg": b"<?xml"}
    assert all((folder / "figures" / n).read_bytes().startswith(begins[n[-3:]]) for n in names)
    assert sum((folder / "figures" / n).stat().st_size for n in names) < 5e6, "points by the thousand are pixels"
    assert not list(folder.rglob("*.partial"))


def test_figures_are_copied_for_the_readme(folder: Path, tmp_path: Path) -> None:
    copied = copy_figures(folder, tmp_path / "figures")
    assert {p.name for p in copied} == {p.name for p in (folder / "figures").glob("*.png")} and len(copied) >= 8
    assert all(p.read_bytes() == (folder / "figures" / p.name).read_bytes() for p in copied)
    listed = (Path(__file__).parents[2] / "figures" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{p.stem}`" in listed for p in copied), "every figure is told of in figures/README.md"


@pytest.mark.parametrize("stage", ["align", "refusal", "units", "ablate", "freeze"])
def test_a_stage_alone_makes_a_report(results: Results, stage: str, tmp_path: Path) -> None:
    alone = Results(model="m", **{stage: getattr(results, stage)})
    page = Page(render(alone, None, {}, tmp_path).read_text(encoding="utf-8"))
    ids = {a["id"] for tag, a in page.elements if tag == "section"}
    assert ids == {"scorecard", stage, "again", "provenance"}
    assert "No hypothesis has been tested yet" in page.text


def test_no_stage_at_all_makes_a_report(tmp_path: Path) -> None:
    page = Page(render(Results(), None, {}, tmp_path).read_text(encoding="utf-8"))
    assert "Not recorded" in page.text and not [t for t, _ in page.elements if t == "img"]


def test_what_is_missing_in_a_stage_is_left_out(results: Results, tmp_path: Path) -> None:
    """No unaligned model, no twins, no training, no controls, one seed, no SCU."""
    bare = behaviour(0.9, choices=None)
    bare = replace(bare, utility=Utility(around(1.2, 0.1)), examples=())
    units = replace(
        made_up_units(), sizes={"RU": made_up_units().sizes["RU"]}, by_layer={"SCU": [0] * 30, "RU": [9] * 30}
    )
    ru = [replace(c, behaviour=bare) for c in results.ablate.conditions if c.role == "RU" and c.control is None]
    ablate = replace(results.ablate, baseline=bare, conditions=tuple(ru), score_controls={}, shares={})
    arms = tuple(replace(a, training=replace(a.training, validation_loss=None)) for a in made_up_freeze(1).arms)
    few = Results(
        model="m",
        align=AlignResult("m", None, None, rate(0.9), None),
        refusal=RefusalResult(bare, None, (), ()),
        units=units,
        ablate=ablate,
        freeze=replace(results.freeze, arms=arms),
    )
    text = Page(render(few, None, {}, tmp_path).read_text(encoding="utf-8")).text
    assert "No random set was measured" in text and "One seed" in text and "studied as given" in text


def test_a_figure_can_be_given_as_it_is(results: Results, tmp_path: Path) -> None:
    drawn = {"behaviour": figures.behaviour(results.refusal), "a_plot_of_mine": figures.freezing(results.freeze)}
    page = Page(write_report(results, drawn, {}, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "Figure: a plot of mine." in [a.get("alt") for _, a in page.elements] and "More figures" in page.text


def test_a_failed_report_leaves_the_old_one(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(FileNotFoundError):
        write_report(results, {"behaviour": tmp_path / "absent.png"}, {}, path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["report.html"]


# ---- the words never say more than the numbers


def test_a_difference_within_the_interval_is_not_called_one(results: Results) -> None:
    same = replace(results.ablate.find("SCU"), refused=results.ablate.baseline_refused)
    conditions = (same, *(replace(c, refused=same.refused) for c in results.ablate.controls("SCU")))
    text = " ".join(words.ablate(replace(results.ablate, conditions=conditions)))
    assert "which n = 60 prompts do not tell from none" in text
    text = " ".join(words.ablate(results.ablate))
    assert (
        "65 points [53, 77] fewer than with 3 matched random sets" in text
        and "90% of its responses are incoherent" in text
    )


def test_freezing_without_a_loss_to_prevent_says_little(results: Results) -> None:
    unmoved = tuple(replace(a, refused=results.freeze.before_refused) for a in results.freeze.arms)
    text = " ".join(words.freeze(replace(results.freeze, arms=unmoved)))
    assert "little for freezing to prevent" in text and "not measurably different from" in text
    text = " ".join(words.freeze(results.freeze))
    assert "does lower refusals" in text and "learned less of the task" in text and "bit" not in text


def test_a_small_rise_of_the_loss_is_not_called_learning_less(results: Results) -> None:
    same = tuple(replace(a, training=replace(a.training, validation_loss=(2.1, 1.6))) for a in results.freeze.arms)
    assert "learned less" not in " ".join(words.freeze(replace(results.freeze, arms=same)))


def test_a_frozen_parameter_that_moved_is_a_warning(results: Results) -> None:
    arm = results.freeze.arms[1]
    moved = replace(arm, training=replace(arm.training, unchanged=False))
    assert "Warning" in " ".join(words.freeze(replace(results.freeze, arms=(results.freeze.arms[0], moved))))


def test_the_first_words_name_the_checks_that_do_not_hold(results: Results) -> None:
    rows = results.scorecard
    assert "in mind" not in report._lead(results)
    doubt = replace(rows[0], verdict=Verdict.CONTRADICTED)
    way = replace(rows[0], id="practice", verdict=Verdict.NOT_SETTLED)
    said = report._lead(replace(results, scorecard=(doubt, *rows[1:], way)))
    assert "with 1 check in mind: “The model under study is aligned” is contradicted." in said


# ---- small things


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.966, "0.97"),
        (-0.04, "-0.04"),
        (-7e-18, "0.00"),
        (0.0013, "0.001"),
        (3210.4, "3,210"),
        (399_847_253.0, "4.0e8"),
        (-2.5e12, "-2.5e12"),
        (float("inf"), "not finite"),
    ],
)
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown


def test_percent_keeps_small_shares_apart() -> None:
    assert [percent(v) for v in (0.013, 0.0, 0.97, 0.02, 1.0)] == ["1.3%", "0%", "97%", "2%", "100%"]


def test_untrusted_text_is_cut_and_its_tricks_shown() -> None:
    assert clean("a\u202eb\x00c\nd") == "a\ufffdb\ufffdc\nd"
    assert clean("x" * 300, 10) == "x" * 10 + " …"


def test_the_page_is_the_same_twice(results: Results, folder: Path, tmp_path: Path) -> None:
    again = render(results, made_up_table(), PROVENANCE, tmp_path).read_text(encoding="utf-8")
    strip = lambda text: re.sub(r"base64,[^\"]+", "", text)
    assert strip(again) == strip((folder / "report.html").read_text(encoding="utf-8"))
