"""Random damage and random contents: whatever a file holds, it is read whole or refused in one line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssah_lens.chat import readers
from ssah_lens.chat.prompts import PromptSet
from ssah_lens.config import PROFILES, StudyConfig, study_config
from ssah_lens.errors import BadInput
from ssah_lens.score.base import Scores
from ssah_lens.score.roles import Sizes, assign
from ssah_lens.units import Kind, Role, UnitGrid, UnitTable

fuzzed = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

TEXT = st.text(max_size=12)
NAMES = st.sampled_from(
    [
        *readers.PROMPT_COLUMNS, *readers.CONTEXT_COLUMNS, *readers.ANSWER_COLUMNS, *readers.SYSTEM_COLUMNS,
        *readers.ID_COLUMNS, *readers.CATEGORY_COLUMNS, "messages", "conversations", "label", "is_safe", "harmful",
        "harmless", "clean", "corrupted", "role", "content", "from", "value", "Prompt", " prompt ", "contextstring",
    ]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from(["user", "assistant", "system"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | TEXT, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read_or_refused(read: Callable[[], PromptSet | tuple[PromptSet, ...]]) -> None:
    """A set without holes, or one line; anything else that is raised fails the test."""
    try:
        found = read()
    except BadInput as e:
        assert len(str(e).splitlines()) == 1
        return
    for prompts in found if isinstance(found, tuple) else (found,):
        assert len(prompts) > 0 and all(p.text.strip() for p in prompts)
        fields = [v for p in prompts for v in vars(p).values()]
        assert all(isinstance(v, str) for v in fields)
        json.dumps(fields).encode()
        "".join(p.text + p.response + p.system for p in prompts).encode("utf-8")


READERS = {
    "prompts": readers.read_prompts,
    "answers": lambda path: readers.read_prompts(path, need_answers=True),
    "pairs": readers.read_pairs,
}


@pytest.mark.parametrize("reader", READERS)
@fuzzed
@given(rows=st.lists(JSON, max_size=4), lines=st.booleans())
def test_any_json(folder: Path, reader: str, rows: list, lines: bool):
    path = folder / ("a.jsonl" if lines else "a.json")
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    read_or_refused(lambda: READERS[reader](path))


@pytest.mark.parametrize("reader", READERS)
@fuzzed
@given(columns=st.lists(NAMES | TEXT, min_size=1, max_size=4), cells=st.lists(st.lists(TEXT, max_size=4), max_size=4))
def test_any_table(folder: Path, reader: str, columns: list[str], cells: list[list[str]]):
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([columns, *cells])
    (folder / "a.csv").write_bytes(buffer.getvalue().encode("utf-8", "surrogatepass"))
    read_or_refused(lambda: READERS[reader](folder / "a.csv"))


@fuzzed
@given(st.binary(max_size=200), st.sampled_from([*readers.FORMATS, *(f"{f}.gz" for f in readers.FORMATS)]))
def test_any_bytes(folder: Path, content: bytes, ending: str):
    (folder / f"b{ending}").write_bytes(content)
    read_or_refused(lambda: readers.read_prompts(folder / f"b{ending}"))


@fuzzed
@given(st.text(max_size=300) | st.text("[]{}=.\"'\n abc019-_#,", max_size=300))
def test_any_configuration(folder: Path, text: str):
    (folder / "c.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        found = study_config(folder / "c.toml")
    except BadInput as e:
        assert len(str(e).splitlines()) == 1
        return
    assert isinstance(found, StudyConfig) and found.profile in PROFILES


@fuzzed
@given(
    st.dictionaries(
        st.sampled_from([*StudyConfig.model_fields, "profile", "other"]),
        JSON | st.dictionaries(st.sampled_from(["steps", "lr", "harmful", "score", "controls", "seeds"]), JSON),
        max_size=3,
    )
)
def test_any_fields(given: dict):
    try:
        study_config(**{k: v for k, v in given.items() if k != "file"})
    except BadInput as e:
        assert len(str(e)) < 1000


# ---- units files

GRID = UnitGrid(3, 5, 2, 30, 60, 2000)


def table() -> UnitTable:
    rng = np.random.default_rng(0)
    values = [{k: rng.normal(size=(3, GRID.width(k))) for k in Kind} for _ in range(2)]
    return UnitTable(GRID, *values, assign(GRID, Scores(*values, signed=True), Sizes(0.2, 0.3, 0.1)), {"score": "mask"})


@pytest.fixture(scope="module")
def units_file(folder: Path) -> Path:
    table().save(folder / "whole.parquet")
    return folder / "whole.parquet"


def loaded_or_refused(path: Path) -> UnitTable | None:
    try:
        found = UnitTable.load(path)
    except BadInput as e:
        assert len(str(e).splitlines()) == 1
        return None
    masks = [np.stack([found.roles[r].masks[k] for r in Role]) for k in Kind]
    assert all((m.sum(0) == 1).all() for m in masks), "every unit has one role"
    assert found.roles[Role.SCU].share.parameters >= 0 and isinstance(found.provenance, dict)
    return found


@settings(fuzzed, max_examples=150)
@given(st.data())
def test_a_units_file_with_bytes_changed(units_file: Path, folder: Path, data: st.DataObject):
    """Also in its footer, which has no checksum: scores and roles are as written, or the file is refused."""
    content = bytearray(units_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "changed.parquet"
    path.write_bytes(content)
    found = loaded_or_refused(path)
    assert found is None or found.frame().equals(table().frame())


@fuzzed
@given(st.data())
def test_a_units_file_with_parts_cut_out(units_file: Path, folder: Path, data: st.DataObject):
    content = units_file.read_bytes()
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start, len(content)))
    (folder / "cut.parquet").write_bytes(content[:start] + content[end:])
    loaded_or_refused(folder / "cut.parquet")


GRIDS = st.fixed_dictionaries({n: JSON | st.integers(-2, 9) for n in vars(GRID)})


@fuzzed
@given(meta=JSON | st.fixed_dictionaries({"grid": GRIDS | JSON, "provenance": JSON}))
def test_a_units_file_with_any_metadata(units_file: Path, folder: Path, meta: object):
    import pyarrow.parquet as pq

    path, old = folder / "meta.parquet", pq.read_table(units_file)
    pq.write_table(old.replace_schema_metadata({b"ssah_lens": json.dumps(meta).encode()}), path)
    loaded_or_refused(path)


@fuzzed
@given(st.data())
def test_a_units_file_with_any_column(units_file: Path, folder: Path, data: st.DataObject):
    import pyarrow as pa
    import pyarrow.parquet as pq

    old = pq.read_table(units_file)
    name = data.draw(st.sampled_from(old.column_names))
    kind = data.draw(
        st.sampled_from([pa.int64(), pa.int8(), pa.float64(), pa.string(), pa.bool_(), pa.binary(), pa.null()])
    )
    values = {
        pa.int64(): st.integers(-2, 9), pa.int8(): st.integers(-2, 9), pa.float64(): st.floats(), pa.string(): TEXT,
        pa.bool_(): st.booleans(), pa.binary(): st.binary(max_size=3), pa.null(): st.none(),
    }[kind]  # fmt: skip
    n = len(old)
    column = pa.array(data.draw(st.lists(values | st.none(), min_size=n, max_size=n)), kind)
    path = folder / "column.parquet"
    pq.write_table(old.set_column(old.column_names.index(name), name, column), path)
    loaded_or_refused(path)
