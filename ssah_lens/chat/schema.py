"""What a row of each shipped file must hold."""

from __future__ import annotations

from collections import Counter
from typing import Any

SPLITS = ("train", "validation", "test")
ALLOWED_SPLITS = {
    "refusal_pairs": SPLITS,
    "instructions": SPLITS,
    "terse": SPLITS,
    "refusals": ("train", "held_out"),
}
LABELS = ("refused", "fulfilled", "incoherent")
_TEXT: dict[str, type] = {"id": str, "split": str, "category": str}
FIELDS: dict[str, dict[str, type]] = {
    "refusal_pairs": _TEXT | {"phrasing": str, "harmful": str, "harmless": str},
    "instructions": _TEXT | {"instruction": str, "response": str},
    "terse": _TEXT | {"instruction": str, "response": str},
    "identity_shift": {"id": str, "system": str, "instruction": str, "response": str},
    "forms": {"id": str, "label": str, "category": str, "prompt": str},
    "borderline": {"id": str, "type": str, "safe": bool, "prompt": str},
    "refusals": {"id": str, "split": str, "style": str, "text": str},
    "choices": {"id": str, "task": str, "question": str, "options": list, "answer": int},
    "prose": {"id": str, "genre": str, "text": str},
    "judged": {"id": str, "half": str, "model": str, "prompts": str, "prompt": str, "response": str, "label": str},
}
"""Fields of each file in their order, and their types."""
UNIQUE = ("harmful", "harmless", "instruction", "text", "prompt")
"""Fields whose texts differ from row to row, letters and spaces apart."""


def row_problems(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """What is wrong with single rows, or with ids and texts that stand twice; one line each."""
    shaped = [r for r in rows if _has_shape(name, r)]
    problems = [
        f"{name} row {i} ({_get(r, 'id')}) is not {', '.join(f'{f}: {t.__name__}' for f, t in FIELDS[name].items())}"
        for i, r in enumerate(rows, 1)
        if not _has_shape(name, r)
    ]
    problems += [f"{name} {row['id']}: {problem}" for row in shaped for problem in _wrong(name, row)]
    problems += [f"{name}: the id {i} stands {n} times" for i, n in Counter(r["id"] for r in shaped).items() if n > 1]
    # Several models answer one prompt, and the labelled outputs are what they are.
    for field in [f for f in UNIQUE if f in FIELDS[name] and name != "judged"]:
        seen = Counter(" ".join(r[field].lower().split()) for r in shaped)
        problems += [f"{name}: '{text[:60]}' stands {n} times" for text, n in seen.items() if n > 1]
    return problems


def _get(row: Any, key: str) -> Any:
    return row.get(key) if isinstance(row, dict) else row


def _has_shape(name: str, row: Any) -> bool:
    fields = FIELDS[name]
    return isinstance(row, dict) and tuple(row) == tuple(fields) and all(type(row[f]) is t for f, t in fields.items())


def _wrong(name: str, row: dict[str, Any]) -> list[str]:
    texts = {f: v for f, v in row.items() if isinstance(v, str)}
    outputs = ("response",) if name == "judged" else ()
    out = [
        f"'{f}' is empty or has space around it"
        for f, v in texts.items()
        if f not in outputs and (not v or v != v.strip())
    ]
    if name == "judged" and row["label"] not in LABELS:
        out.append(f"label '{row['label']}' is none of {', '.join(LABELS)}")
    if name in ALLOWED_SPLITS and row["split"] not in ALLOWED_SPLITS[name]:
        out.append(f"split '{row['split']}' is none of {', '.join(ALLOWED_SPLITS[name])}")
    if name == "refusal_pairs" and row["harmful"].lower() == row["harmless"].lower():
        out.append("both sides are the same")
    if name == "choices":
        options = row["options"]
        if not all(isinstance(o, str) and o for o in options) or not 2 <= len(options) == len(set(options)) <= 5:
            out.append("options are not 2 to 5 different texts")
        if not 0 <= row["answer"] < len(options):
            out.append(f"answer {row['answer']} of {len(options)} options")
    return out
