"""Files of matched pairs, for patching: a clean and a corrupted prompt a row."""

from __future__ import annotations

from pathlib import Path

from ssah_lens.chat.promptset import Prompt, PromptSet
from ssah_lens.chat.readers import read_rows
from ssah_lens.errors import BadInput

PAIR_COLUMNS = (("clean", "corrupted"), ("harmful", "harmless"))
"""Columns that hold the two sides; a harmful prompt is the clean one, since refusing it is what we trace."""


def read_pairs(path: str | Path) -> tuple[PromptSet, PromptSet]:
    """Clean and corrupted prompts of a `.jsonl`, `.json` or `.csv` file.

    Raises:
        BadInput: no such file, another format, no known columns, a side that is empty or not text.
    """
    path = Path(path)
    if path.suffix.lower() == ".txt":
        raise BadInput(f"'{path}': a text file has no columns; pairs are .jsonl, .json or .csv with clean, corrupted")
    rows = [_pair(path, number, row) for number, row in enumerate(read_rows(path), 1)]
    if not rows:
        raise BadInput(f"'{path}' holds no pairs")
    clean, corrupted = zip(*rows, strict=True)
    return PromptSet(f"{path.stem}, clean", clean), PromptSet(f"{path.stem}, corrupted", corrupted)


def _pair(path: Path, number: int, row: object) -> tuple[Prompt, Prompt]:
    where = f"'{path}' row {number}"
    fields = {str(k).strip().lower(): v for k, v in row.items() if k is not None} if isinstance(row, dict) else {}
    names = next((c for c in PAIR_COLUMNS if all(n in fields for n in c)), None)
    if names is None:
        allowed = " or ".join(", ".join(c) for c in PAIR_COLUMNS)
        raise BadInput(f"{where} has columns {', '.join(fields) or 'none'}: needs {allowed}")
    for name in names:
        if not isinstance(fields[name], str) or not fields[name].strip():
            raise BadInput(f"{where} column '{name}' is empty or not text")
        if any("\ud800" <= c <= "\udfff" for c in fields[name]):
            raise BadInput(f"{where} column '{name}' holds half a character (a lone surrogate); remove it")
    clean, corrupted = (Prompt(fields[name].strip(), id=str(fields.get("id", number))) for name in names)
    return clean, corrupted
