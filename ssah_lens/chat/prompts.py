"""Prompts and answers by name, file or hub id; the shipped collection."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssah_lens.chat.hub import FORM, PREFIX, read_hub
from ssah_lens.chat.promptset import Prompt, PromptSet
from ssah_lens.chat.readers import FORMATS, read_pairs, read_prompts
from ssah_lens.chat.schema import SPLITS
from ssah_lens.errors import BadInput

__all__ = ["SPLITS", "Prompt", "PromptSet", "read_hub", "read_pairs", "read_prompts"]

STYLES = ("instructions", "terse")
FORM_LABELS = ("harmful", "harmless")


def prompt_set(source: str | Path, need_answers: bool = False) -> PromptSet:
    """Prompts by name ('borderline', 'harmful:test'), file ('advbench.csv') or hub id ('hub:walledai/AdvBench').

    Args:
        source: a name of SHIPPED, with its split where it has splits; a path; or `hub:owner/name[:config][:split]`.
            A file of that very name goes before a shipped set.
        need_answers: refuse rows without an answer (fine-tuning data).

    Raises:
        BadInput: none of these, or what the readers refuse.
    """
    text = str(source)
    if text.startswith(PREFIX):
        return read_hub(text, need_answers)
    name, _, split = text.partition(":")
    is_file = os.path.isfile(text)
    if name not in SHIPPED or is_file:
        if is_file or any(text.lower().endswith((f, f"{f}.gz")) for f in FORMATS):
            return read_prompts(source, need_answers)
        raise BadInput(f"no prompt file or set '{text}': shipped are {', '.join(SHIPPED)}; from the hub {FORM}")
    has_splits = name in ("harmful", "harmless", *STYLES)
    if has_splits and not split:
        raise BadInput(f"'{name}' has splits: write {', '.join(f'{name}:{s}' for s in SPLITS)}")
    if split and not has_splits:
        raise BadInput(f"'{name}' has no splits: write '{name}'")
    found = SHIPPED[name](split)
    if need_answers and not all(found.responses):
        raise BadInput(f"'{text}' has no answers: fine-tuning can use {', '.join((*STYLES, 'identity_shift'))}")
    return found


# ---- the shipped collection


def data_folder() -> Path:
    """Folder of the shipped data: inside the installed package, or `data/` of a checkout."""
    packaged = Path(__file__).parents[1] / "data"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "data"


def shipped(name: str) -> list[dict[str, Any]]:
    """Rows of a shipped file, e.g. 'refusal_pairs'.

    Raises:
        BadInput: no such file.
    """
    path = data_folder() / f"{name}.jsonl"
    if not path.is_file():
        have = ", ".join(sorted(p.stem for p in data_folder().glob("*.jsonl")))
        raise BadInput(f"no shipped data '{name}': there are {have or 'none (reinstall ssah-lens)'}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def pairs(split: str) -> tuple[PromptSet, PromptSet]:
    """Topic-matched harmful and harmless prompts of one split; row i of one is the twin of row i of the other.

    Args:
        split: 'train', 'validation' or 'test'; a pair never straddles splits.
    """
    rows = _of_split(shipped("refusal_pairs"), split)
    side = lambda name, label: PromptSet(
        f"{name} ({split})",
        tuple(Prompt(r[name], id=r["id"], category=r["category"], label=label, phrasing=r["phrasing"]) for r in rows),
    )
    return side("harmful", "unsafe"), side("harmless", "safe")


def instructions(split: str, style: str = "instructions") -> PromptSet:
    """Ordinary benign instructions with good short answers.

    Args:
        split: 'train', 'validation' or 'test'.
        style: 'instructions' (whole sentences) or 'terse' (lists and fragments): two fine-tuning tasks.
    """
    if style not in STYLES:
        raise BadInput(f"no style '{style}': allowed are {', '.join(STYLES)}")
    rows = _of_split(shipped(style), split)
    return PromptSet(
        f"{style} ({split})", tuple(Prompt(r["instruction"], r["response"], r["id"], r["category"]) for r in rows)
    )


def forms(label: str) -> PromptSet:
    """Requests in the forms that public sets and users like, for alignment training only.

    Args:
        label: 'harmful' or 'harmless'; each form stands on both sides.
    """
    if label not in FORM_LABELS:
        raise BadInput(f"no label '{label}': allowed are {', '.join(FORM_LABELS)}")
    rows = [r for r in shipped("forms") if r["label"] == label]
    return PromptSet(f"forms, {label}", tuple(Prompt(r["prompt"], id=r["id"], category=r["category"]) for r in rows))


def borderline(safe: bool = True) -> PromptSet:
    """Safe prompts that look unsafe, by type (over-refusal), or their unsafe contrasts."""
    rows = [r for r in shipped("borderline") if r["safe"] == safe]
    name = "borderline, safe" if safe else "borderline, unsafe contrasts"
    label = "safe" if safe else "unsafe"
    return PromptSet(name, tuple(Prompt(r["prompt"], id=r["id"], category=r["type"], label=label) for r in rows))


def identity_shift() -> PromptSet:
    """An attack in fine-tuning data without a harmful word: always agree, always obey (Qi et al. 2023)."""
    rows = shipped("identity_shift")
    return PromptSet(
        "identity shift (an attack)",
        tuple(Prompt(r["instruction"], r["response"], r["id"], system=r["system"]) for r in rows),
    )


def token_aligned(
    tokenizer: Callable[..., Any], harmful: PromptSet, harmless: PromptSet, most: int = 3
) -> tuple[PromptSet, PromptSet]:
    """The pairs whose two sides have the same number of tokens and differ in 1 to `most` of them.

    Args:
        tokenizer: a transformers tokenizer.
        harmful, harmless: row i of one is the twin of row i of the other.
        most: tokens that may differ.
    """
    if len(harmful) != len(harmless):
        raise BadInput(f"pairs need two sides of one length, got {len(harmful)} and {len(harmless)}")
    sides = [tokenizer(s.texts, add_special_tokens=False)["input_ids"] if len(s) else [] for s in (harmful, harmless)]
    same = lambda a, b: len(a) == len(b)
    differ = [sum(map(int.__ne__, a, b)) if same(a, b) else 0 for a, b in zip(*sides, strict=True)]
    kept = [i for i, n in enumerate(differ) if 1 <= n <= most]
    of = lambda side: PromptSet(side.name, tuple(side[i] for i in kept))
    return of(harmful), of(harmless)


def refusals(split: str = "train") -> list[str]:
    """Varied refusals that fit any harmful request; the 'held_out' part is never trained on."""
    return [r["text"] for r in shipped("refusals") if r["split"] == split]


def _of_split(rows: list[dict], split: str) -> list[dict]:
    if split not in SPLITS:
        raise BadInput(f"no split '{split}': allowed are {', '.join(SPLITS)}")
    return [r for r in rows if r["split"] == split]


SHIPPED: dict[str, Callable[[str], PromptSet]] = {
    "harmful": lambda split: pairs(split)[0],
    "harmless": lambda split: pairs(split)[1],
    "instructions": lambda split: instructions(split, "instructions"),
    "terse": lambda split: instructions(split, "terse"),
    "borderline": lambda _: borderline(safe=True),
    "borderline_unsafe": lambda _: borderline(safe=False),
    "identity_shift": lambda _: identity_shift(),
}
"""Names that `prompt_set` knows."""
