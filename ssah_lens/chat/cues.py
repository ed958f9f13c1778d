"""What gives the right option of a multiple-choice item away to one who understands nothing.

Annotators leave such traces without noticing (Gururangan et al. 2018, arXiv 1803.02324): the right option stands first,
is the longest, or repeats the words of the text. Only an item without them measures understanding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CUE = 0.1
"""How far from chance each rule may be right in a sub-test; far below gives the answer away no less than far above."""


@dataclass(frozen=True)
class Cues:
    """Share of the items in which a blind rule picks the right option; tied options share the point.

    Attributes:
        rows: items.
        chance: what guessing reaches.
        first: the option that stands first.
        longest: the one with most words.
        copied: the one with most words of the text in it, function words apart.
    """

    rows: int
    chance: float
    first: float
    longest: float
    copied: float


def cues(items: Sequence[dict[str, Any]]) -> dict[str, Cues]:
    """The blind rules on each sub-test, by its name. Items are rows of `choices`."""
    return {task: _of([i for i in items if i["task"] == task]) for task in dict.fromkeys(i["task"] for i in items)}


def cue_problems(items: Sequence[dict[str, Any]]) -> list[str]:
    """Sub-tests in which a blind rule tells the right options from the wrong ones; one line each."""
    return [
        f"choices: in {task}, the option that {says} is right in {share:.0%}, chance is {c.chance:.0%} (at most "
        f"{CUE:.0%} off is allowed)"
        for task, c in cues(items).items()
        for says, share in (
            ("stands first", c.first),
            ("is longest", c.longest),
            ("shares most words with the text", c.copied),
        )
        if abs(share - c.chance) > CUE + 1e-9
    ]


def _of(items: list[dict[str, Any]]) -> Cues:
    share = lambda rule: float(np.mean([_point([rule(i, o) for o in i["options"]], i["answer"]) for i in items]))
    return Cues(
        rows=len(items),
        chance=float(np.mean([1 / len(i["options"]) for i in items])),
        first=float(np.mean([i["answer"] == 0 for i in items])),
        longest=share(lambda item, option: len(option.split())),
        copied=share(lambda item, option: len(_words(option) & _words(item["question"]))),
    )


def _point(scores: list[int], answer: int) -> float:
    best = max(scores)
    return (scores[answer] == best) / scores.count(best)


def _words(text: str) -> set[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # slow to import

    return set(re.findall(r"[^\W_]+", text.lower())) - ENGLISH_STOP_WORDS
