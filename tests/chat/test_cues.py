"""Blind rules on multiple-choice items, by hand; the shipped items hold against them and planted cues are found."""

from __future__ import annotations

import copy

import pytest

from ssah_lens.chat.check import check_collection
from ssah_lens.chat.cues import Cues, cue_problems, cues
from ssah_lens.chat.prompts import shipped
from ssah_lens.chat.schema import FIELDS


def item(task: str, question: str, options: list[str], answer: int) -> dict:
    return {"id": "x", "task": task, "question": question, "options": options, "answer": answer}


def test_cues_by_hand():
    items = [
        item("a", "The dog saw a cat. So", ["the dog sat.", "the bird has flown off."], 0),  # first, copied
        item("a", "The dog saw a cat. So", ["the cat and the dog ran.", "it was an owl."], 1),  # none
        item("b", "Two by two is", ["four", "five", "six", "two"], 3),  # longest in a tie of four, copied
    ]
    assert cues(items) == {"a": Cues(2, 0.5, 0.5, 0.0, 0.5), "b": Cues(1, 0.25, 0.0, 0.25, 0.25)}


def test_function_words_and_capitals_are_not_copying():
    only = item("a", "The Dog is in the yard. So", ["the man is in the house.", "a dog barks."], 1)
    assert cues([only])["a"].copied == 1


def lengthen(row: dict) -> None:
    row["options"][row["answer"]] += " and so on and on"


def copy_text(row: dict) -> None:
    row["options"][1 - row["answer"]] = row["question"]


def right_first(row: dict) -> None:
    row["options"].insert(0, row["options"].pop(row["answer"]))
    row["answer"] = 0


CUES = {
    "position": (right_first, "in passage, the option that stands first is right in 100%"),
    "length": (lengthen, "in passage, the option that is longest is right in 100%"),
    "copying": (copy_text, "in passage, the option that shares most words with the text is right in 0%"),
}


@pytest.mark.parametrize("case", CUES)
def test_planted_cues_are_found(case: str):
    damage, says = CUES[case]
    rows = copy.deepcopy(shipped("choices"))
    assert cue_problems(rows) == []
    for row in (r for r in rows if r["task"] == "passage"):
        damage(row)
    problems = cue_problems(rows)
    assert any(says in p for p in problems) and all("passage" in p for p in problems), problems


def test_the_check_of_the_collection_reports_cues():
    rows = copy.deepcopy(shipped("choices")[:40])
    for row in rows:
        right_first(row)
    few = {name: shipped(name)[:5] for name in FIELDS} | {"choices": rows}
    assert set(cue_problems(rows)) < set(check_collection(few).problems)
