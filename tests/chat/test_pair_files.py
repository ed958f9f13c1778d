"""Files of matched pairs as people write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssah_lens.chat.pair_files import read_pairs
from ssah_lens.errors import BadInput


@pytest.mark.parametrize("names", [("clean", "corrupted"), ("harmful", "harmless"), ("Harmless", " HARMFUL ")])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_both_column_names_in_every_format(names: tuple[str, str], suffix: str, tmp_path: Path):
    rows = [dict(zip(names, (f"one, {i}", f"two {i}"), strict=True)) | {"note": "x"} for i in range(2)]
    if suffix == ".csv":
        text = "\n".join([",".join([*names, "note"]), *(f'"one, {i}",two {i},x' for i in range(2))])
    else:
        text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
    file = tmp_path / f"pairs{suffix}"
    file.write_text(text)
    first, second = read_pairs(file)
    if names[0] == "Harmless":
        first, second = second, first
    assert first.texts == ["one, 0", "one, 1"] and second.texts == ["two 0", "two 1"]


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        (
            "p.csv",
            "prompt,answer\na,b\n",
            "row 1 has columns prompt, answer: needs clean, corrupted or harmful, harmless",
        ),
        ("p.csv", "clean,corrupted\na,\n", "row 1 column 'corrupted' is empty"),
        ("p.jsonl", '{"clean": 1, "corrupted": "b"}', "column 'clean' is empty or not text"),
        ("p.jsonl", '"just text"', "needs clean, corrupted"),
        ("p.jsonl", '{"clean": "\\ud800", "corrupted": "b"}', "half a character"),
        ("p.jsonl", "", "holds no pairs"),
        ("p.txt", "a\nb\n", "has no columns"),
        ("p.jsonl", "{", "line 1 is not valid JSON"),
    ],
)
def test_bad_files_are_told_plainly(name: str, text: str, match: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=match):
        read_pairs(tmp_path / name)
    with pytest.raises(BadInput, match="no prompt file"):
        read_pairs(tmp_path / "none.csv")
