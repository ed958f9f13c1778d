"""Prompt sets by name, and the shipped collection."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from ssah_lens.chat import prompts as p
from ssah_lens.chat.prompts import Prompt, PromptSet, prompt_set
from ssah_lens.errors import BadInput

# --- prompt sets


def test_a_sample_keeps_the_order():
    full = PromptSet("x", tuple(Prompt(str(i)) for i in range(50)))
    got = full.sample(10, seed=1)
    assert len(set(got.texts)) == 10 and [int(t) for t in got.texts] == sorted(int(t) for t in got.texts)
    assert got == full.sample(10, seed=1) and got != full.sample(10, seed=2)
    assert full.sample(None, 0) is full and full.sample(50, 0) is full and full.sample(99, 0) is full


def test_without():
    full = PromptSet("x", (Prompt("a"), Prompt("b", id="2"), Prompt("c")))
    assert full.without(PromptSet("y", (Prompt("b", id="9"),))).texts == ["a", "c"]


FULL = PromptSet(
    "x",
    (
        Prompt("a", id="1", category="fraud", label="unsafe", phrasing="typo"),
        Prompt("b", id="2", category="fraud", label="safe", system="Be brief."),
        Prompt("c", id="3", category="theft", label="unsafe"),
    ),
)


def test_filters():
    assert FULL.where(category="fraud").texts == ["a", "b"]
    assert FULL.where(label="unsafe", category="theft").texts == ["c"]
    assert FULL.where(lambda q: q.id > "1", label="unsafe").texts == ["c"]
    assert FULL.where(lambda q: False).texts == []
    assert FULL.where(phrasing="typo").name == "x"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"categry": "fraud"}, "have no 'categry': allowed are id, category"),
        ({"label": "bad"}, "it has 'safe', 'unsafe'"),
    ],
)
def test_filters_that_cannot_match_are_refused(values, says: str):
    with pytest.raises(BadInput, match=says):
        FULL.where(**values)


def test_pairing_goes_by_id():
    other = PromptSet("y", tuple(Prompt(t, id=i) for t, i in [("C", "3"), ("A", "1"), ("B", "2")]))
    first, second = FULL.paired(other)
    assert first == FULL and second.texts == ["A", "B", "C"] and second.name == "y"
    with pytest.raises(BadInput, match=r"id '3' has no twin \(1\)"):
        FULL.paired(other[1:])
    with pytest.raises(BadInput, match="y has an id twice"):
        FULL.paired(PromptSet("y", other.prompts * 2))


def test_rendering_with_a_system_prompt(micro):
    """A prompt's own system prompt goes before the one given for all."""
    given, own, _ = FULL.render(micro, "You are kind.")
    assert given == micro.render("a", "You are kind.") and "You are kind." in given
    assert own == micro.render("b", "Be brief.") and "You are kind." not in own
    assert FULL.render(micro)[0] == micro.render("a")
    rows = micro.rows(FULL.texts, system=FULL.systems)
    assert [r.ids for r in rows] == [micro.prompt_tokens(q.text, q.system or None)[0] for q in FULL]
    assert rows[1].ids != micro.rows(["b"])[0].ids
    assert micro.rows(FULL) == rows and micro.generate(FULL, 4) == micro.generate(FULL.texts, 4, system=FULL.systems)
    for_all = micro.rows([FULL[0], FULL[1], "c"], system="You are kind.")
    assert [r.ids for r in for_all[:2]] == [
        micro.prompt_tokens(*q)[0] for q in (("a", "You are kind."), ("b", "Be brief."))
    ]
    assert for_all[2] == micro.rows(["c"], system="You are kind.")[0]


# --- by name


@pytest.mark.parametrize("name", p.SHIPPED)
def test_shipped_sets_load_by_name(name: str):
    if name in ("borderline", "borderline_unsafe", "identity_shift"):
        found = prompt_set(name)
    else:
        with pytest.raises(BadInput, match=f"'{name}' has splits: write {name}:train"):
            prompt_set(name)
        found = prompt_set(f"{name}:test")
        assert not set(found.texts) & set(prompt_set(f"{name}:train").texts)
    assert len(found) >= 10


def test_shipped_sets_know_their_side_and_form():
    assert prompt_set("harmful:test") == p.pairs("test")[0]
    assert {q.label for q in prompt_set("harmful:train")} == {"unsafe"}
    assert {q.label for q in prompt_set("borderline")} == {"safe"}
    assert 10 <= len(prompt_set("harmless:test").where(phrasing="typo")) < 30
    assert all(q.system for q in prompt_set("identity_shift", need_answers=True))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("bordrline", "no prompt file or set 'bordrline': shipped are harmful, harmless"),
        ("none.txt", "no prompt file 'none.txt'"),
        ("none.jsonl.gz", "no prompt file 'none.jsonl.gz'"),
        ("borderline:test", "'borderline' has no splits"),
        ("harmful:dev", "no split 'dev'"),
    ],
)
def test_unknown_sources_say_what_there_is(source: str, says: str):
    with pytest.raises(BadInput, match=says):
        prompt_set(source)


def test_sets_without_answers_are_no_fine_tuning_data():
    with pytest.raises(BadInput, match="fine-tuning can use instructions, terse, identity_shift"):
        prompt_set("borderline", need_answers=True)


def test_a_file_goes_before_a_shipped_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("Bake bread\n")
    assert prompt_set("mine.txt").texts == prompt_set(tmp_path / "mine.txt").texts == ["Bake bread"]
    (tmp_path / "borderline").write_text("Bake bread\n")
    with pytest.raises(BadInput, match="'borderline' is not a prompt file"):
        prompt_set("borderline")


# --- the shipped collection


def plain(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


def test_every_file_has_unique_ids():
    for name in ("refusal_pairs", "instructions", "refusals", "prose", "choices"):
        ids = [row["id"] for row in p.shipped(name)]
        assert len(set(ids)) == len(ids) > 0, name


def test_there_are_enough_pairs_and_each_has_one_split():
    rows = p.shipped("refusal_pairs")
    assert len(rows) >= 120 and {r["split"] for r in rows} == set(p.SPLITS)
    counts = Counter(r["split"] for r in rows)
    assert counts["train"] > counts["test"] > counts["validation"] >= 40
    every = [p.pairs(s) for s in p.SPLITS]
    assert sum(len(harmful) for harmful, _ in every) == len(rows)
    assert sum(len(p.instructions(s)) for s in p.SPLITS) == len(p.shipped("instructions"))


def test_pairs_are_twins_row_by_row():
    by_id = {r["id"]: r for r in p.shipped("refusal_pairs")}
    for split in p.SPLITS:
        harmful, harmless = p.pairs(split)
        for bad, good in zip(harmful, harmless, strict=True):
            assert bad.id == good.id and bad.category == good.category
            row = by_id[bad.id]
            assert (row["split"], row["harmful"], row["harmless"]) == (split, bad.text, good.text)


def test_every_category_is_in_every_split():
    for name in ("refusal_pairs", "instructions"):
        seen = {s: {r["category"] for r in p.shipped(name) if r["split"] == s} for s in p.SPLITS}
        assert seen["train"] == seen["validation"] == seen["test"], name


def test_no_text_is_repeated_within_or_across_splits():
    texts = [r[side] for r in p.shipped("refusal_pairs") for side in ("harmful", "harmless")]
    texts += [r["instruction"] for r in p.shipped("instructions")]
    repeated = [t for t, n in Counter(map(plain, texts)).items() if n > 1]
    assert not repeated
    refusals = Counter(plain(r["text"]) for r in p.shipped("refusals"))
    assert max(refusals.values()) == 1


def test_shipped_rows_are_whole():
    for row in p.shipped("instructions"):
        assert row["instruction"].strip() and row["response"].strip()
    for row in p.shipped("choices"):
        assert 0 <= row["answer"] < len(row["options"]) == len(set(row["options"])), row["id"]
    assert all(r["text"].strip() for r in p.shipped("prose"))


def test_refusals_for_training_and_for_testing_differ():
    train, held_out = p.refusals("train"), p.refusals("held_out")
    assert len(train) >= 20 and held_out and not set(train) & set(held_out)


def test_unknown_splits_and_files_are_refused():
    with pytest.raises(BadInput, match="train, validation, test"):
        p.pairs("dev")
    with pytest.raises(BadInput, match="train, validation, test"):
        p.instructions("all")
    with pytest.raises(BadInput, match="refusal_pairs"):
        p.shipped("nothing")


def test_a_slice_of_a_set_is_a_set():
    whole = PromptSet("x", tuple(Prompt(t) for t in "abcd"))
    assert isinstance(whole[1:3], PromptSet) and whole[1:3].texts == ["b", "c"] and whole[0] == Prompt("a")
