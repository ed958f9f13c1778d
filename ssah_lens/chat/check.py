"""Validates the shipped collection: schema, counts, splits without leaks, matched sides, choices without cues.

Every limit is a constant here; what a single row must hold is in `schema.py`.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssah_lens.chat import built_in
from ssah_lens.chat.cues import cue_problems
from ssah_lens.chat.leak import Leak, auroc, leak
from ssah_lens.chat.prompts import STYLES, shipped, token_aligned
from ssah_lens.chat.promptset import Prompt, PromptSet
from ssah_lens.chat.schema import FIELDS, SPLITS, row_problems
from ssah_lens.chat.similar import similar
from ssah_lens.stats import Estimate, mean

Data = dict[str, list[dict[str, Any]]]

LEAST = {"refusal_pairs": 600, "instructions": 800, "terse": 200, "identity_shift": 10, "refusals": 60, "choices": 500}
LEAST |= {"forms": 300}
LEAST_SAFE, LEAST_UNSAFE = 200, 60
LEAST_PROSE_WORDS = 9_000
"""About 12,000 tokens."""
LEAST_CATEGORIES, LEAST_PHRASINGS, LEAST_ALIGNED = 10, 8, 150
SHARES = {"train": 0.5, "validation": 0.2, "test": 0.3}
SHARE_TOLERANCE = 0.02
SIMILAR = 0.85
"""Token-set similarity (rapidfuzz) above which two prompts are near-duplicates."""
OPENING, TEMPLATE_SHARE = 2, 0.1
"""Pairs whose harmful sides open with the same two words are of one template; at most a tenth of the pairs may be."""
WORDS = (4, 60)
LENGTH_AUROC = 0.05
"""How far from 0.5 the number of words alone may tell the sides apart."""
LEAK_AUROC = 0.75
SIDES = ("harmful", "harmless")
GROUPED_BY = {
    "refusal_pairs": "category",
    "instructions": "category",
    "terse": "category",
    "forms": "label",
    "borderline": "type",
    "refusals": "style",
    "choices": "task",
    "prose": "genre",
    "judged": "label",
}


@dataclass(frozen=True)
class FileCounts:
    """Rows of one file: by split (borderline: safe or unsafe), by GROUPED_BY and, of the pairs, by phrasing."""

    rows: int
    splits: dict[str, int]
    groups: dict[str, int]
    phrasings: dict[str, int]


@dataclass(frozen=True)
class Matching:
    """How alike the two sides of the pairs are.

    Attributes:
        words: mean words a prompt, harmful and harmless.
        words_difference: harmful minus harmless within a pair.
        length_auroc: how well the number of words alone tells the sides apart (0.5: not at all).
        template: the most frequent opening of a harmful side.
        template_share: its share of the pairs.
        aligned: token-aligned pairs under the tokenizer of each built-in model that is cached.
        aligned_everywhere: pairs that are token-aligned under all of these.
        leak: what word counts know.
    """

    words: tuple[float, float]
    words_difference: Estimate
    length_auroc: Estimate
    template: str
    template_share: float
    aligned: dict[str, int]
    aligned_everywhere: int
    leak: Leak


@dataclass(frozen=True)
class Collection:
    """The collection; whole when there are no problems.

    Attributes:
        files: counts by file; empty when rows are too damaged to count.
        matching: how alike the sides are; None when rows are too damaged to compare.
        problems: one line each.
        load_seconds: what reading all the files took.
    """

    files: dict[str, FileCounts]
    matching: Matching | None
    problems: tuple[str, ...]
    load_seconds: float


def check_collection(data: Data | None = None) -> Collection:
    """Counts, measures and problems of the shipped files (or of these rows). Reads tokenizers, loads no model."""
    start = time.perf_counter()
    data = data or {name: shipped(name) for name in FIELDS}
    seconds = time.perf_counter() - start
    problems = [p for name, rows in data.items() for p in row_problems(name, rows)]
    if problems:
        return Collection({}, None, tuple(problems), seconds)
    comparable = all(any(r["split"] == s for r in data[n]) for n in ("refusal_pairs", "instructions") for s in SPLITS)
    matching = match(data) if comparable else None
    found = (
        *count_problems(data),
        *near_duplicates(data),
        *cue_problems(data["choices"]),
        *(matching_problems(matching) if matching else ()),
    )
    return Collection({name: _counts(name, rows) for name, rows in data.items()}, matching, found, seconds)


def _counts(name: str, rows: list[dict]) -> FileCounts:
    by = lambda key: dict(Counter(r[key] for r in rows if key in r))
    splits = dict(Counter("safe" if r["safe"] else "unsafe" for r in rows)) if name == "borderline" else by("split")
    return FileCounts(len(rows), splits or {"all": len(rows)}, by(GROUPED_BY.get(name, "")), by("phrasing"))


# ---- counts and splits


def count_problems(data: Data) -> list[str]:
    """Too few rows, kinds or lengths; splits of other shares, or without a category."""
    pairs = data["refusal_pairs"]
    at_least = [(f"{name} has rows", len(data[name]), least) for name, least in LEAST.items()]
    at_least += [
        ("borderline has safe prompts", sum(r["safe"] for r in data["borderline"]), LEAST_SAFE),
        ("borderline has unsafe contrasts", sum(not r["safe"] for r in data["borderline"]), LEAST_UNSAFE),
        ("prose has words", sum(len(r["text"].split()) for r in data["prose"]), LEAST_PROSE_WORDS),
        ("refusal_pairs has categories", len({r["category"] for r in pairs}), LEAST_CATEGORIES),
        ("refusal_pairs has phrasings", len({r["phrasing"] for r in pairs}), LEAST_PHRASINGS),
    ]
    out = [f"{what}: {n}, at least {least} are needed" for what, n, least in at_least if n < least]
    for row in pairs:
        for side in SIDES:
            n = len(row[side].split())
            if not WORDS[0] <= n <= WORDS[1]:
                out.append(f"refusal_pairs {row['id']}: {side} has {n} words, allowed are {WORDS[0]} to {WORDS[1]}")
    for split, share in SHARES.items():
        got = sum(r["split"] == split for r in pairs) / max(len(pairs), 1)
        if abs(got - share) > SHARE_TOLERANCE:
            out.append(f"refusal_pairs: {split} is {got:.0%} of the pairs, not {share:.0%}")
    for name in ("refusal_pairs", "instructions", "terse"):
        cells = {(r["split"], r["category"]) for r in data[name]}
        every = sorted({r["category"] for r in data[name]})
        out += [f"{name}: no {c} in {s}" for s in SPLITS for c in every if (s, c) not in cells]
    return out


# ---- near-duplicates


@dataclass(frozen=True)
class _Text:
    """A text to compare: where it is from, the side in which it must be alone, its split."""

    source: str
    side: str
    split: str
    text: str


def near_duplicates(data: Data) -> list[str]:
    """Prompts too much alike inside a side or across splits, whatever file they are in; refusals and choices too.

    The two sides of a pair are alike on purpose and share a split. Borderline prompts are for testing only, the
    identity shift and the forms are for training only. Refusals and choices are formulaic, so whole sentences are
    compared there (token sort instead of token set).
    """
    from rapidfuzz import fuzz

    prompts = [
        *(_Text(f"refusal_pairs {r['id']}", f, r["split"], r[f]) for r in data["refusal_pairs"] for f in SIDES),
        *(_Text(f"{n} {r['id']}", "ordinary", r["split"], r["instruction"]) for n in STYLES for r in data[n]),
        *(_Text(f"identity_shift {r['id']}", "attack", "train", r["instruction"]) for r in data["identity_shift"]),
        *(_Text(f"forms {r['id']}", r["label"], "train", r["prompt"]) for r in data["forms"]),
        *(_Text(f"borderline {r['id']}", f"safe {r['safe']}", "test", r["prompt"]) for r in data["borderline"]),
    ]
    clash = lambda a, b: a.source != b.source and (a.side == b.side or a.split != b.split)
    found = [(prompts[i], prompts[j], s) for i, j, s in similar([t.text for t in prompts], SIMILAR)]
    alike = [f for f in found if clash(f[0], f[1])]

    refusals = [_Text(f"refusals {r['id']}", "refusals", r["split"], r["text"]) for r in data["refusals"]]
    found = similar([t.text for t in refusals], SIMILAR, fuzz.token_sort_ratio)
    alike += [(refusals[i], refusals[j], s) for i, j, s in found if refusals[i].split != refusals[j].split]

    items = [_Text(f"choices {r['id']}", "", "", " ".join([r["question"], *r["options"]])) for r in data["choices"]]
    alike += [(items[i], items[j], s) for i, j, s in similar([t.text for t in items], SIMILAR, fuzz.token_sort_ratio)]
    where = lambda t: f"{t.source} ({t.split})" if t.split else t.source
    return [f"{where(a)} and {where(b)} are near-duplicates ({s:.2f}): '{a.text[:60]}'" for a, b, s in alike]


# ---- the two sides of the pairs


def match(data: Data) -> Matching:
    """How alike the sides are, in length, opening, tokens and words."""
    rows = data["refusal_pairs"]
    words = [np.array([len(r[side].split()) for r in rows], dtype=float) for side in SIDES]
    texts = lambda side, split: [r[side] for r in rows if r["split"] == split]
    of = lambda split: (texts(SIDES[0], split), texts(SIDES[1], split))
    ordinary = lambda split: [r["instruction"] for r in data["instructions"] if r["split"] == split]
    template, n = Counter(opening(r["harmful"]) for r in rows).most_common(1)[0]
    aligned = aligned_ids(rows)
    return Matching(
        words=(float(words[0].mean()), float(words[1].mean())),
        words_difference=mean(words[0] - words[1]),
        length_auroc=auroc(words[0], words[1], paired=True),
        template=template,
        template_share=n / len(rows),
        aligned={name: len(ids) for name, ids in aligned.items()},
        aligned_everywhere=len(set.intersection(*aligned.values())) if aligned else 0,
        leak=leak(of("train"), of("test"), (ordinary("train"), ordinary("test"))),
    )


def opening(text: str) -> str:
    """The first words of a prompt in lower case, without punctuation: what a template begins with."""
    return " ".join(re.findall(r"[\w']+", text.lower())[:OPENING])


def aligned_ids(rows: list[dict]) -> dict[str, set[str]]:
    """Ids of the token-aligned pairs under the tokenizer of every built-in model that is cached."""
    from tokenizers import Tokenizer  # the file alone: transformers would take seconds to import

    sides = [PromptSet(side, tuple(Prompt(r[side], id=r["id"]) for r in rows)) for side in SIDES]
    out = {}
    for name in (n for n in built_in.BUILT_IN if built_in.is_cached(n)):
        file = Tokenizer.from_file(str(built_in.cached_folder(name) / "tokenizer.json"))
        encode = lambda texts, file=file, **options: {"input_ids": [e.ids for e in file.encode_batch(texts, **options)]}
        out[name] = {p.id for p in token_aligned(encode, sides[0], sides[1])[0]}
    return out


def matching_problems(m: Matching) -> list[str]:
    """Sides that are told apart by length, opening or words; too few token-aligned pairs."""
    out = [
        f"refusal_pairs: {n} pairs are token-aligned for {name}, at least {LEAST_ALIGNED} are needed"
        for name, n in m.aligned.items()
        if n < LEAST_ALIGNED
    ]
    if m.template_share > TEMPLATE_SHARE:
        out.append(f"refusal_pairs: {m.template_share:.0%} open with '{m.template}', at most {TEMPLATE_SHARE:.0%} may")
    if abs(m.length_auroc.value - 0.5) > LENGTH_AUROC:
        out.append(f"refusal_pairs: the number of words tells the sides apart (AUROC {m.length_auroc.value:.2f})")
    if m.leak.matched.value >= LEAK_AUROC:
        leaky = ", ".join(w.word for w in m.leak.words[:8])
        out.append(
            f"refusal_pairs: words tell the sides apart (AUROC {m.leak.matched.value:.2f}, limit {LEAK_AUROC}): {leaky}"
        )
    return out
