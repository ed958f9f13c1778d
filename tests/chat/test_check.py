"""The shipped collection is whole and its sides are matched; and the check finds what is planted."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from rapidfuzz import fuzz, process, utils
from scipy.stats import binomtest

from ssah_lens.chat import built_in, check, prompts
from ssah_lens.chat.check import Collection, check_collection
from ssah_lens.chat.cues import cues
from ssah_lens.chat.leak import auroc, leak, leaky_words, scores
from ssah_lens.chat.prompts import shipped
from ssah_lens.chat.schema import FIELDS, row_problems
from ssah_lens.chat.similar import similar
from ssah_lens.errors import Fault
from ssah_lens.stats import Estimate


@pytest.fixture(scope="module")
def found() -> Collection:
    return check_collection()


@pytest.fixture
def data() -> check.Data:
    return copy.deepcopy({name: shipped(name) for name in FIELDS})


# --- the shipped collection


def test_nothing_is_wrong(found: Collection):
    assert not found.problems, "\n".join(found.problems)


def test_words_alone_tell_the_sides_apart_badly_and_unmatched_sides_well(found: Collection):
    known = found.matching.leak
    assert known.matched.value < check.LEAK_AUROC < known.unmatched.low
    assert known.matched.n == 2 * known.twins.n == 2 * found.files["refusal_pairs"].splits["test"]


def test_enough_pairs_are_token_aligned(found: Collection):
    if not built_in.is_cached("smollm2-135m"):
        pytest.skip("smollm2-135m is not fetched")
    m = found.matching
    assert min(m.aligned.values()) >= m.aligned_everywhere >= check.LEAST_ALIGNED
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(built_in.cached_folder("smollm2-135m"))
    every = [prompts.token_aligned(theirs, *prompts.pairs(s))[0] for s in prompts.SPLITS]
    assert {p.id for part in every for p in part} == check.aligned_ids(shipped("refusal_pairs"))["smollm2-135m"]


# --- the data card says what the files hold


def tables(text: str) -> dict[str, list[dict[str, str]]]:
    """Tables of a Markdown text by the name of their first column; rows as column -> cell, code marks taken off."""
    found: dict[str, list[dict[str, str]]] = {}
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        header, _, *rows = [[c.strip().strip("`") for c in line.strip("|\n").split("|")] for line in block.splitlines()]
        found[header[0]] = [dict(zip(header, row, strict=True)) for row in rows]
    return found


@pytest.fixture(scope="module")
def card() -> dict[str, list[dict[str, str]]]:
    return tables((prompts.data_folder() / "README.md").read_text(encoding="utf-8"))


def counted(rows: list[dict[str, str]], name: str, column: str = "rows") -> dict[str, int]:
    return {row[name]: int(row[column]) for row in rows if row[column]}


def test_the_card_counts_every_file_and_split(card, found: Collection):
    files = {name.removesuffix(".jsonl"): n for name, n in counted(card["file"], "file").items()}
    assert {name: c.rows for name, c in found.files.items()}.items() <= files.items()
    assert files == {name: len(shipped(name)) for name in files}
    assert set(files) == {f.stem for f in prompts.data_folder().glob("*.jsonl")}
    for row in card["file"]:
        counts = found.files.get(row["file"].removesuffix(".jsonl"))
        for split in ("train", "validation", "test", "held out"):
            if counts:
                assert (row[split] or "0") == str(counts.splits.get(split.replace(" ", "_"), 0)), (row["file"], split)


def test_the_card_counts_categories_phrasings_types_and_tasks(card, found: Collection):
    pairs = found.files["refusal_pairs"]
    assert counted(card["category"], "category") == pairs.groups
    for split in prompts.SPLITS:
        rows = [r for r in shipped("refusal_pairs") if r["split"] == split]
        assert counted(card["category"], "category", split) == Counter(r["category"] for r in rows)
    assert counted(card["phrasing"], "phrasing") == pairs.phrasings
    for side, safe in (("safe", True), ("unsafe", False)):
        types = Counter(r["type"] for r in shipped("borderline") if r["safe"] is safe)
        assert counted(card["borderline type"], "borderline type", side) == types
    assert counted(card["choices task"], "choices task") == found.files["choices"].groups
    assert f"({found.files['borderline'].splits['safe']}), and unsafe" in card["file"][1]["what"]


def test_every_category_has_its_names_elsewhere_and_every_phrasing_a_true_example(card):
    harmbench = {
        "chemical_biological", "cybercrime_intrusion", "harassment_bullying", "harmful", "illegal",
        "misinformation_disinformation",
    }  # fmt: skip
    assert {n.strip() for row in card["category"] for n in row["HarmBench"].split(",")} == harmbench
    assert all(row["MLCommons"] for row in card["category"])
    for row in card["phrasing"]:
        assert {
            r["phrasing"] for r in shipped("refusal_pairs") if row["example of a harmless side"] == r["harmless"]
        } == {row["phrasing"]}


def test_the_cards_figures_are_those_of_the_check(card, found: Collection):
    m = found.matching
    true = {
        "mean words, harmful side": f"{m.words[0]:.1f}",
        "mean words, harmless side": f"{m.words[1]:.1f}",
        "AUROC of the number of words": f"{m.length_auroc.value:.2f}",
        "AUROC of word counts, pairs": f"{m.leak.matched.value:.2f}",
        "harmful side above its own twin, by word counts": f"{m.leak.twins.value:.2f}",
        "AUROC of word counts, harmful against ordinary instructions": f"{m.leak.unmatched.value:.2f}",
        **{f"token-aligned pairs, {name}": str(n) for name, n in m.aligned.items()},
    }
    if len(m.aligned) == 3:
        true["token-aligned pairs, under all three"] = str(m.aligned_everywhere)
    assert true.items() <= {row["measure"]: row["value"] for row in card["measure"]}.items()


def test_the_card_says_how_easy_the_choices_are(card):
    """Blind rules and chance are those of the items; the p-values are those of the rates (the models are not run)."""
    found = cues(shipped("choices"))
    blind = {row.pop("blind rule on"): tuple(row.values()) for row in copy.deepcopy(card["blind rule on"])}
    assert blind == {task: (f"{c.first:.2f}", f"{c.longest:.2f}", f"{c.copied:.2f}") for task, c in found.items()}
    easy = copy.deepcopy(card["accuracy on"])
    counts = {row.pop("accuracy on"): (int(row.pop("n")), row.pop("chance")) for row in easy}
    assert counts == {task: (c.rows, f"{c.chance:.2f}") for task, c in found.items()}
    for (task, c), row in zip(found.items(), easy, strict=True):
        for model, cell in row.items():
            if not cell:
                continue  # not measured
            rate, p = re.fullmatch(r"(\d\.\d\d) \((\S+)\)", cell).groups()
            right = round(float(rate) * c.rows)
            assert p == f"{binomtest(right, c.rows, c.chance, 'greater').pvalue:.1g}", (task, model)


def test_tables_are_read():
    text = "a\n\n| x | y |\n|---|---|\n| `1` | |\n\nb\n| z |\n|---|\n| 3 |\n"
    assert tables(text) == {"x": [{"x": "1", "y": ""}], "z": [{"z": "3"}]}


# --- planted damage: rows


def first(data: check.Data, name: str) -> dict:
    return data[name][0]


ROWS: dict[str, tuple[str, Callable[[list[dict]], object], str]] = {
    "a field missing": ("prose", lambda r: r[0].pop("genre"), "prose row 1 (prose-001) is not id: str, genre: str"),
    "a field too many": ("prose", lambda r: r[4].update(note="x"), "prose row 5"),
    "fields in another order": ("terse", lambda r: r[0].update(id=r[0].pop("id")), "terse row 1"),
    "another type": ("borderline", lambda r: r[2].update(safe="yes"), "borderline row 3"),
    "a truth value for a number": ("choices", lambda r: r[0].update(answer=True), "choices row 1"),
    "no object": ("prose", lambda r: r.append("text"), "(text) is not id"),
    "an empty text": ("refusals", lambda r: r[0].update(text=""), "refusals refusal-001: 'text' is empty"),
    "space around a text": ("refusals", lambda r: r[0].update(text="No. "), "'text' is empty or has space around it"),
    "an unknown split": ("terse", lambda r: r[0].update(split="dev"), "split 'dev' is none of train, validation, test"),
    "the same twice in a pair": (
        "refusal_pairs", lambda r: r[0].update(harmless=r[0]["harmful"].upper()), "both sides are the same",
    ),
    "an id twice": ("prose", lambda r: r[1].update(id=r[0]["id"]), "prose: the id prose-001 stands 2 times"),
    "a text twice": (
        "terse", lambda r: r[1].update(instruction=r[0]["instruction"].upper().replace(" ", "  ")), "stands 2 times",
    ),
    "an answer out of range": ("choices", lambda r: r[0].update(answer=9), "answer 9 of"),
    "options alike": ("choices", lambda r: r[0].update(options=["a", "a"]), "options are not 2 to 5 different texts"),
    "six options": ("choices", lambda r: r[0].update(options=list("abcdef")), "options are not 2 to 5"),
    "an option that is no text": ("choices", lambda r: r[0].update(options=["a", ["b"]]), "options are not 2 to 5"),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_damaged_rows_are_found(data: check.Data, case: str):
    name, damage, says = ROWS[case]
    assert row_problems(name, data[name]) == []
    damage(data[name])
    problems = row_problems(name, data[name])
    assert any(says in p for p in problems), problems
    whole = check_collection(data)
    assert whole.problems == tuple(problems) and whole.matching is None


# --- planted damage: counts, splits, near-duplicates


def move(rows: list[dict], split: str, n: int) -> None:
    for row in [r for r in rows if r["split"] != split][:n]:
        row["split"] = split


COUNTS: dict[str, tuple[Callable[[check.Data], object], str]] = {
    "too few pairs": (
        lambda d: d.update(refusal_pairs=d["refusal_pairs"][:599]), "refusal_pairs has rows: 599, at least 600",
    ),
    "too few contrasts": (
        lambda d: d.update(borderline=[r for r in d["borderline"] if r["safe"]]), "unsafe contrasts: 0, at least 60",
    ),
    "too little prose": (lambda d: d.update(prose=d["prose"][:9]), "at least 9000 are needed"),
    "too few phrasings": (
        lambda d: [r.update(phrasing="typo") for r in d["refusal_pairs"]], "refusal_pairs has phrasings: 1, at least 8",
    ),
    "a prompt too short": (lambda d: first(d, "refusal_pairs").update(harmless="Go on, then"), "harmless has 3 words"),
    "a prompt too long": (lambda d: first(d, "refusal_pairs").update(harmful="so " * 61), "harmful has 61 words"),
    "splits out of proportion": (lambda d: move(d["refusal_pairs"], "test", 20), "test is 33% of the pairs, not 30%"),
    "a category missing in a split": (
        lambda d: [r.update(category="new") for r in d["terse"][:1]], "terse: no new in",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COUNTS)
def test_wrong_counts_are_found(data: check.Data, case: str):
    damage, says = COUNTS[case]
    assert check.count_problems(data) == []
    damage(data)
    problems = check.count_problems(data)
    assert any(says in p for p in problems), problems


def of_split(rows: list[dict], split: str) -> dict:
    return next(r for r in rows if r["split"] == split)


def test_near_duplicates_are_found_wherever_they_stand(data: check.Data):
    pairs, ordinary = data["refusal_pairs"], data["instructions"]
    assert check.near_duplicates(data) == []
    train, test = of_split(pairs, "train"), of_split(pairs, "test")
    other = of_split([r for r in pairs if r is not train], "train")
    same_split = train["harmful"] + " please"
    other["harmful"] = same_split  # inside a side
    test["harmless"] = train["harmless"] + " now"  # across splits
    of_split(ordinary, "test")["instruction"] = of_split(data["terse"], "train")["instruction"] + "!"  # across files
    data["borderline"][0]["prompt"] = train["harmful"] + " today"  # a test prompt that is trained on
    held = of_split(data["refusals"], "held_out")
    held["text"] = of_split(data["refusals"], "train")["text"] + " Sorry."
    data["choices"][1] |= {k: data["choices"][0][k] for k in ("question", "options", "answer")}
    problems = "\n".join(check.near_duplicates(data))
    for a, b in (
        (train["id"], other["id"]), (train["id"], test["id"]), (train["id"], data["borderline"][0]["id"]),
        (of_split(data["terse"], "train")["id"], of_split(ordinary, "test")["id"]),
        (of_split(data["refusals"], "train")["id"], held["id"]),
        (data["choices"][0]["id"], data["choices"][1]["id"]),
    ):  # fmt: skip
        assert any(a in line and b in line for line in problems.splitlines()), f"{a}, {b}\n{problems}"


def test_twins_and_other_sides_of_one_split_may_be_alike(data: check.Data):
    rows = [r for r in data["refusal_pairs"] if r["split"] == "train"]
    rows[0]["harmful"], rows[1]["harmless"] = "How do I bake my bread?", "How do I bake your bread?"
    rows[0]["harmless"] = "How do I bake his bread?"
    assert not [p for p in check.near_duplicates(data) if "safe" not in p and rows[0]["id"] in p and "harmful" in p]
    assert len(check.near_duplicates(data)) == 1  # rows[0] and rows[1] on the harmless side


def test_badly_matched_sides_are_found(found: Collection):
    m = found.matching
    at = lambda value: Estimate(value, None, None, 10)
    damaged = replace(
        m,
        length_auroc=at(0.56),
        template="tell me",
        template_share=0.11,
        aligned={"smollm2-135m": 149},
        leak=replace(m.leak, matched=at(0.75)),
    )
    problems = "\n".join(check.matching_problems(damaged))
    for says in (
        "149 pairs are token-aligned",
        "11% open with 'tell me'",
        "number of words",
        "words tell the sides apart",
    ):
        assert says in problems
    assert len(problems.splitlines()) == 4 and not check.matching_problems(m)


def test_no_pairs_at_all_are_found(data: check.Data):
    data["refusal_pairs"] = []
    found = check_collection(data)
    assert found.matching is None and any("refusal_pairs has rows: 0" in p for p in found.problems)


def test_openings():
    assert check.opening("What's the, best way?") == "what's the" and check.opening("¡Go!") == "go"


def test_the_command_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    from ssah_lens.cli.collection import data_check

    monkeypatch.setattr(check, "shipped", lambda name: shipped(name)[:5])
    with pytest.raises(
        Fault, match=r"^the shipped collection has \d\d problems, the first: refusal_pairs has rows: 5"
    ) as e:
        data_check()
    said = capsys.readouterr()
    assert said.out == "" and "\n" not in str(e.value)
    assert said.err.splitlines()[0].startswith("refusal_pairs has rows: 5") and "prose has words" in said.err


# --- near-duplicates themselves


def test_few_comparisons_find_what_all_comparisons_find():
    texts = [r["harmful"] for r in shipped("refusal_pairs")[:200]] + [
        r["harmless"] for r in shipped("refusal_pairs")[:200]
    ]
    texts += ["How do I bake bread", "how do i BAKE bread??", "bread", "", "do bake"]
    every = process.cdist(texts, texts, scorer=fuzz.token_set_ratio, processor=utils.default_process, dtype=np.float64)
    for limit in (0.7, 0.85):
        expected = {(i, j) for i, j in np.argwhere(every > 100 * limit).tolist() if i < j}
        got = similar(texts, limit)
        assert {(i, j) for i, j, _ in got} == expected and len(expected) > 20
        assert [s for *_, s in got] == sorted((s for *_, s in got), reverse=True)
    assert similar(["a"], 0.5) == similar([], 0.5) == []


# --- the leak test


def test_auroc_by_hand():
    got = auroc(np.array([3.0, 1.0]), np.array([2.0, 1.0]), paired=True)
    assert got.value == (1 + 1 + 0 + 0.5) / 4 and got.n == 4 and got.low <= got.value <= got.high
    assert auroc(np.arange(5.0) + 9, np.arange(5.0), paired=False) == Estimate(1.0, 1.0, 1.0, 10)


def test_auroc_agrees_with_sklearn():
    from sklearn.metrics import roc_auc_score

    a, b = np.random.default_rng(0).normal(size=(2, 60)).round(1)
    got = auroc(a + 0.5, b, paired=False)
    assert got.value == pytest.approx(roc_auc_score([1] * 60 + [0] * 60, [*(a + 0.5), *b]))
    assert 0.05 < got.high - got.value < 0.15  # the standard error is near 0.05


TOPICS = [f"thing{i}" for i in range(40)]


def test_a_word_on_one_side_only_leaks():
    side = lambda word, topics: [f"tell me how to {word} the {t}" for t in topics]
    ordinary = (side("paint", TOPICS[:20]), side("paint", TOPICS[20:]))
    known = leak(
        (side("steal", TOPICS[:20]), side("buy", TOPICS[:20])),
        (side("steal", TOPICS[20:]), side("buy", TOPICS[20:])),
        ordinary,
    )
    assert known.matched.value == known.twins.value == known.unmatched.value == 1
    assert {(w.word, w.harmful, w.harmless) for w in known.words} == {("steal", 40, 0), ("buy", 0, 40)}


def test_words_on_both_sides_do_not_leak():
    """'his ... mine' against 'my ... his': every word stands as often on both sides, only their order differs."""
    bad, good = ([f"open {a} {t} with {b} key" for t in TOPICS] for a, b in (("his", "my"), ("my", "his")))
    known = leak((bad[:20], good[:20]), (bad[20:], good[20:]), (["sing a song"] * 5, ["sing a song"] * 5))
    assert known.matched.value == known.twins.value == 0.5 and known.words == ()
    assert known.unmatched.value == 1


def test_scores_are_of_words_not_of_characters_or_rows():
    bad, good, empty = scores(
        ["kill it", "kill them"], ["keep it", "keep them"], ["KILL IT"], ["keep it"], ["unseen words"]
    )
    assert bad[0] > 0 > good[0] and abs(empty[0]) < 1e-3


def test_rare_and_even_words_are_no_leaks():
    assert leaky_words(["odd"] * 4 + ["even"] * 6, ["even"] * 5) == ()
    assert [w.word for w in leaky_words(["odd"] * 5 + ["even"] * 6, ["even"] * 5)] == ["odd"]


def test_the_answer_is_json(found: Collection):
    from dataclasses import asdict

    assert json.loads(json.dumps(asdict(found), allow_nan=False))["matching"]["leak"]["twins"]["n"] == 186
