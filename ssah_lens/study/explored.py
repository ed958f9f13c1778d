"""The texts that a run folder's unit explorer shows: found while the model is at hand, kept beside the units."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ssah_lens.chat.batch import Position, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import PromptSet
from ssah_lens.errors import BadInput
from ssah_lens.files import write_whole
from ssah_lens.results import UnitContext
from ssah_lens.study.contexts import unit_contexts
from ssah_lens.study.look import mattering
from ssah_lens.study.openings import MIN_SHARE, Openings
from ssah_lens.units import UnitTable

FILE = "contexts.json.gz"


def explored(
    model: ChatModel,
    table: UnitTable,
    sets: dict[str, PromptSet],
    refusing: Sequence[int],
    answered: Sequence[Row],
) -> list[UnitContext]:
    """Contexts of the units that matter (SCU and UCU, the largest of them).

    Args:
        model: the model.
        table: its units.
        sets: name -> prompts; the harmful ones first.
        refusing: tokens that open its refusals.
        answered: harmless prompts with its own answers: their first tokens open answers.
    """
    units = mattering(table)
    fulfilling = [t for t in first_tokens(answered) if t not in refusing]
    openings = Openings(tuple(refusing), tuple(fulfilling)) if refusing and fulfilling else None
    return unit_contexts(model, units, sets, openings=openings) if units else []


def first_tokens(rows: Sequence[Row]) -> list[int]:
    """Tokens that open at least `MIN_SHARE` of these responses."""
    firsts = Counter(row.ids[row.positions.index(Position.RESPONSE)] for row in rows)
    return sorted(t for t, n in firsts.items() if n >= MIN_SHARE * len(rows))


def save_contexts(folder: Path, contexts: list[UnitContext]) -> Path:
    """Writes `contexts.json.gz` into a run folder."""
    text = TypeAdapter(list[UnitContext]).dump_json(contexts)
    return write_whole(folder / FILE, lambda partial: partial.write_bytes(gzip.compress(text, 6, mtime=0)))


def load_contexts(folder: Path) -> list[UnitContext]:
    """What `save_contexts` wrote; nothing where there is no such file.

    Raises:
        BadInput: the file is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return []
    try:
        return TypeAdapter(list[UnitContext]).validate_json(gzip.decompress(file.read_bytes()))
    except (OSError, EOFError, ValidationError) as e:
        raise BadInput(f"'{file}' is damaged; delete it (the explorer then shows no texts)") from e
