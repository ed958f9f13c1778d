"""Prompt files as their authors publish them: text, JSON, JSON lines and CSV, read whole or refused.

Whatever a file holds that would be read in part (two lists, more cells than columns, another encoding) is an error
with its place, never a shorter set.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ssah_lens.chat.promptset import Prompt, PromptSet
from ssah_lens.errors import BadInput

PROMPT_COLUMNS = ("prompt", "instruction", "goal", "behavior", "forbidden_prompt", "query", "question", "text")
"""First one found (any case) holds the prompt; AdvBench, HarmBench, JailbreakBench, StrongREJECT, XSTest, Alpaca..."""
CONTEXT_COLUMNS = ("input", "context")
CONTEXT_BEFORE = "contextstring"
"""HarmBench's contextual behaviours: the context stands first, divided off as in HarmBench's own DirectRequest."""
ANSWER_COLUMNS = ("output", "response", "completion", "answer")
SYSTEM_COLUMNS = ("system", "system_prompt")
ID_COLUMNS = ("id", "behaviorid")
CATEGORY_COLUMNS = ("category", "semanticcategory", "type")
PAIR_COLUMNS = (("harmful", "harmless"), ("clean", "corrupted"))
FORMATS = (".txt", ".jsonl", ".json", ".csv")
MAX_BYTES = 200_000_000
"""Largest file that is read: prompts are held in memory, several copies of them while a file is parsed."""
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


def read_prompts(path: str | Path, need_answers: bool = False) -> PromptSet:
    """Reads a prompt or fine-tuning file.

    `.txt` holds one prompt a line. `.jsonl`, `.json` and `.csv` take the first column found of PROMPT_COLUMNS, an
    optional CONTEXT_COLUMNS that is appended after a blank line, and an answer from ANSWER_COLUMNS; or `messages`
    (or `conversations`) with role and content, of which the system turn, the last user turn and the answer after it
    count. Ids, categories and 'safe'/'unsafe' labels are kept. Any of these may be packed (`.jsonl.gz`).

    Args:
        path: the file, UTF-8 (a byte-order mark is allowed), at most MAX_BYTES unpacked.
        need_answers: refuse rows without an answer (fine-tuning data).

    Raises:
        BadInput: no such file, too large, another encoding, not the format that its name says, no known column, an
            empty row, an id that stands twice.
    """
    path = Path(path)
    return prompts_of(f"'{path}'", _stem(path), read_rows(path), need_answers)


def read_pairs(path: str | Path) -> tuple[PromptSet, PromptSet]:
    """Reads matched pairs: columns `harmful` and `harmless`, or `clean` and `corrupted`; row i of one is row i's twin.

    Raises:
        BadInput: as `read_prompts`; no such two columns.
    """
    path = Path(path)
    allowed = " or ".join(" and ".join(pair) for pair in PAIR_COLUMNS)
    if path.suffix.lower() == ".txt":
        raise BadInput(f"'{path}': a text file has no columns; pairs are .csv, .json or .jsonl with {allowed}")
    rows = [row_fields(f"'{path}' row {i}", row) for i, row in enumerate(read_rows(path), 1)]
    first = rows[0] if rows else {}
    columns = next((pair for pair in PAIR_COLUMNS if all(c in first for c in pair)), None)
    if columns is None:
        raise BadInput(f"'{path}' has columns {', '.join(first) or 'none'}: pairs need {allowed}")
    shared = lambda row: {c: row[c] for c in (*ID_COLUMNS, *CATEGORY_COLUMNS) if c in row}
    labels = ("unsafe", "safe") if columns == PAIR_COLUMNS[0] else ("", "")
    side = lambda c, label: prompts_of(
        f"'{path}' column '{c}'",
        f"{_stem(path)}, {c}",
        [{"prompt": row.get(c), "label": label, **shared(row)} for row in rows],
    )
    return side(columns[0], labels[0]), side(columns[1], labels[1])


def prompts_of(where: str, name: str, rows: Sequence[Any], need_answers: bool = False) -> PromptSet:
    """A prompt set of rows (objects with named columns, or bare strings).

    Args:
        where: what to call the source in errors.
        name: of the set.
    """
    found = tuple(_prompt(f"{where} row {i}", i, row, need_answers) for i, row in enumerate(rows, 1))
    if not found:
        raise BadInput(f"{where} holds no prompts")
    first: dict[str, int] = {}
    for i, prompt in enumerate(found, 1):
        if first.setdefault(prompt.id, i) != i:
            raise BadInput(f"{where} row {i} has the id '{prompt.id}' of row {first[prompt.id]}: make ids differ")
    return PromptSet(name, found)


# ---- from bytes to rows


def read_rows(path: Path) -> list[Any]:
    packed = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if packed else path).suffix.lower()
    if not os.path.isfile(path):  # unlike Path's, it takes any name without raising
        raise BadInput(f"no prompt file '{path}'")
    if suffix not in FORMATS:
        raise BadInput(f"'{path}' is not a prompt file: allowed are {', '.join(FORMATS)}, also packed as .gz")
    text = _text(path, packed)
    read: dict[str, Callable[[Path, str], Sequence[Any]]] = {
        ".txt": _lines, ".csv": _csv, ".json": _json, ".jsonl": _json_lines,
    }  # fmt: skip
    return [{"prompt": row} if isinstance(row, str) else row for row in read[suffix](path, text)]


def _text(path: Path, packed: bool) -> str:
    """The whole file as text, with Unix line ends."""
    too_large = BadInput(
        f"'{path}' holds more than {MAX_BYTES // 1_000_000} MB: save a part of it, e.g. its first 100,000 rows"
    )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise too_large
        with gzip.open(path) if packed else path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise BadInput(f"'{path}' is no whole gzip file: {e}") from e
    except OSError as e:
        raise BadInput(f"'{path}' cannot be read: {e.strerror}") from e
    if len(content) > MAX_BYTES:
        raise too_large
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        what = "not UTF-8 but UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else f"not UTF-8 (byte {e.start})"
        raise BadInput(f"'{path}' is {what}; save it as UTF-8") from e
    if "\0" in text:
        raise BadInput(f"'{path}' holds NUL bytes (UTF-16, or no text?); save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(path: Path, text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


def _csv(path: Path, text: str) -> list[dict[str, str]]:
    try:
        table = [cells for cells in csv.reader(io.StringIO(text, newline=""), strict=True) if cells]
    except csv.Error as e:
        raise BadInput(f"'{path}' is not valid CSV: {e}") from e
    if not table:
        return []
    header = [c.strip().lower() for c in table[0]]
    twice = {c for c in header if c and header.count(c) > 1}
    if twice:
        raise BadInput(f"'{path}' has two columns '{min(twice)}': rename one")
    for i, cells in enumerate(table[1:], 1):
        if len(cells) != len(header):
            raise BadInput(f"'{path}' row {i} has {len(cells)} cells for {len(header)} columns: quote commas")
    return headed(header, [dict(zip(header, cells, strict=True)) for cells in table[1:]], table[0])


def headed(header: Sequence[str], rows: list[dict[str, Any]], written: Sequence[str] | None = None) -> list[dict]:
    """HEx-PHI's CSV files have one column and no header: a 'header' that is a sentence is the first prompt.

    Args:
        header: names of the columns, the keys of the rows.
        written: the same as they stand in the file.
    """
    only = header[0] if len(header) == 1 else ""
    if len(only.split()) < 3 or ";" in only or "\t" in only:  # 'id; prompt' is another separator, no sentence
        return rows
    return [{"prompt": (written or header)[0]}, *({"prompt": row[only]} for row in rows)]


def _json(path: Path, text: str) -> list[Any]:
    rows = _parsed(f"'{path}'", json.loads, text) if text.strip() else []
    if isinstance(rows, dict):  # {"data": [...]} and the like
        lists = {k: v for k, v in rows.items() if isinstance(v, list)}
        if len(lists) > 1:
            raise BadInput(f"'{path}' must hold a list of prompts, it holds several ({', '.join(lists)}): keep one")
        rows = next(iter(lists.values()), None)
    if not isinstance(rows, list):
        raise BadInput(f"'{path}' must hold a list of prompts")
    return rows


def _json_lines(path: Path, text: str) -> list[Any]:
    lines = enumerate(text.split("\n"), 1)  # not splitlines: U+2028 may stand inside a JSON string
    return [_parsed(f"'{path}' line {i}", json.loads, line) for i, line in lines if line.strip()]


def _parsed(where: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except (ValueError, RecursionError) as e:
        raise BadInput(f"{where} is not valid JSON: {e}") from e


# ---- from a row to a prompt


def row_fields(where: str, row: Any) -> dict[str, Any]:
    """The row's columns by their names in lower case."""
    if not isinstance(row, dict):
        raise BadInput(f"{where} is not an object with named columns")
    out: dict[str, Any] = {}
    for key, value in row.items():
        name = str(key).strip().lower()
        if name in out:
            raise BadInput(f"{where} has two columns '{name}': rename one")
        out[name] = value
    return out


def _prompt(where: str, number: int, row: Any, need_answers: bool) -> Prompt:
    fields = row_fields(where, {"prompt": row} if isinstance(row, str) else row)
    turns = fields.get("messages") or fields.get("conversations")
    system, text, answer = _from_turns(where, turns) if turns is not None else _from_columns(where, fields)
    if any("\ud800" <= c <= "\udfff" for c in system + text + answer):
        raise BadInput(f"{where} holds half a character (a lone surrogate); remove it")
    if not text.strip():
        raise BadInput(f"{where} has an empty prompt; remove the row")
    if need_answers and not answer.strip():
        raise BadInput(f"{where} has no answer: fine-tuning needs one of {', '.join(ANSWER_COLUMNS)}, or messages")
    given = next((str(fields[c]) for c in ID_COLUMNS if fields.get(c) not in (None, "")), "")
    return Prompt(text.strip(), answer.strip(), given or str(number), _category(fields), system.strip(), _label(fields))


def _from_columns(where: str, fields: dict[str, Any]) -> tuple[str, str, str]:
    column = next((c for c in PROMPT_COLUMNS if c in fields), None)
    if column is None:
        raise BadInput(f"{where} has columns {', '.join(fields) or 'none'}: needs one of {', '.join(PROMPT_COLUMNS)}")
    pick = lambda names: next((fields[c] for c in names if fields.get(c)), "")
    parts = [pick(SYSTEM_COLUMNS), pick([CONTEXT_BEFORE]), fields[column], pick(CONTEXT_COLUMNS), pick(ANSWER_COLUMNS)]
    if not all(isinstance(p, str) for p in parts):
        raise BadInput(f"{where} column '{column}' (or its context, system prompt or answer) is not text")
    system, before, text, after, answer = parts
    if text.strip() and before.strip():
        text = f"{before.strip()}\n\n---\n\n{text}"
    return system, (f"{text}\n\n{after}" if after.strip() else text), answer


def _from_turns(where: str, turns: Any) -> tuple[str, str, str]:
    try:
        said = [(ROLES[t.get("role", t.get("from"))], t.get("content", t.get("value"))) for t in turns]
        last = max(i for i, (role, _) in enumerate(said) if role == "user")
    except (TypeError, AttributeError, KeyError, ValueError) as e:
        raise BadInput(
            f"{where}: messages must be a list of {{role: user|assistant|system, content: text}} with a user turn"
        ) from e
    answer = said[last + 1][1] if last + 1 < len(said) else ""
    system = next((content for role, content in said if role == "system"), "")
    if not all(isinstance(t, str) for t in (system, said[last][1], answer)):
        raise BadInput(f"{where}: a message's content is not text")
    return system, said[last][1], answer


def _category(fields: dict[str, Any]) -> str:
    """A name; of BeaverTails' table of flags the names that are set."""
    value = next((fields[c] for c in CATEGORY_COLUMNS if fields.get(c)), "")
    if isinstance(value, dict):
        return ", ".join(str(k) for k, is_set in value.items() if is_set is True)
    return str(value)


def _label(fields: dict[str, Any]) -> str:
    """'safe' or 'unsafe' from XSTest's `label` or BeaverTails' `is_safe`; '' where neither says so."""
    value = str(fields.get("label", fields.get("is_safe", ""))).strip().lower()
    known = {"safe": "safe", "unsafe": "unsafe"}
    if "is_safe" in fields:
        known |= {"true": "safe", "false": "unsafe"}
    return known.get(value, "")


def _stem(path: Path) -> str:
    return path.stem.removesuffix(path.with_suffix("").suffix) if path.suffix.lower() == ".gz" else path.stem
