"""Sets of units as algebra, random twins, and the units file against damage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ssah_lens.errors import BadInput
from ssah_lens.units import Kind, Role, UnitGrid, UnitSet, UnitTable, parse_roles, top_units

GRID = UnitGrid(n_layers=3, d_mlp=5, n_heads=2, mlp_parameters=48, head_parameters=128, block_parameters=3 * 600)
OTHER = UnitGrid(n_layers=3, d_mlp=6, n_heads=2, mlp_parameters=48, head_parameters=128, block_parameters=3 * 648)


@st.composite
def unit_sets(draw) -> UnitSet:
    return UnitSet(GRID, {k: draw(hnp.arrays(bool, (GRID.n_layers, GRID.width(k)))) for k in Kind})


def members(units: UnitSet) -> set[tuple[str, int, int]]:
    """The same set as a plain Python set: the reference that the masks are compared with."""
    return {(str(k), int(i), int(j)) for k in Kind for i, j in np.argwhere(units.masks[k])}


# --- algebra


@given(unit_sets(), unit_sets())
def test_operations_are_those_of_sets(a, b):
    assert members(a | b) == members(a) | members(b)
    assert members(a & b) == members(a) & members(b)
    assert members(a - b) == members(a) - members(b)
    assert len(a) == len(members(a))
    assert (a == b) == (members(a) == members(b))


@given(unit_sets(), unit_sets(), unit_sets())
def test_laws(a, b, c):
    assert a | b == b | a and a & b == b & a
    assert (a | b) | c == a | (b | c)
    assert a & (b | c) == (a & b) | (a & c)
    assert a - b == a - (a & b)
    assert (a - b) | (a & b) == a
    assert a - a == UnitSet.empty(GRID)


@given(unit_sets(), unit_sets())
def test_operations_leave_their_operands_alone(a, b):
    before = members(a), members(b)
    _ = a | b, a & b, a - b, a.random_twin(0), a.share
    assert (members(a), members(b)) == before


@given(unit_sets())
def test_round_trip_through_triples(a):
    assert UnitSet.of(GRID, [(Kind(k), i, j) for k, i, j in members(a)]) == a


def test_other_shapes_do_not_mix():
    with pytest.raises(BadInput, match="different shape"):
        UnitSet.empty(GRID) | UnitSet.empty(OTHER)
    assert UnitSet.empty(GRID) != UnitSet.empty(OTHER)


def test_masks_must_fit_the_grid():
    masks = dict(UnitSet.empty(GRID).masks)
    with pytest.raises(BadInput, match=r"\(3, 5\)"):
        UnitSet(GRID, {**masks, Kind.MLP: np.zeros((3, 4), dtype=bool)})
    with pytest.raises(BadInput, match="head"):
        UnitSet(GRID, {Kind.MLP: masks[Kind.MLP]})


@pytest.mark.parametrize(
    "unit", [(Kind.MLP, 0, 5), (Kind.MLP, 3, 0), (Kind.HEAD, 0, 2), (Kind.HEAD, -1, 0), (Kind.MLP, 0, -1)]
)
def test_units_outside_the_model_are_refused(unit):
    with pytest.raises(BadInput, match="layers 0-2"):
        UnitSet.of(GRID, [unit])


def test_shares_by_count_and_by_parameters():
    share = UnitSet.of(GRID, [(Kind.MLP, 0, 1), (Kind.MLP, 2, 4), (Kind.HEAD, 1, 0)]).share
    assert share.n == 3
    assert share.units == pytest.approx(3 / 21)  # 3 layers x (5 + 2)
    assert share.parameters == pytest.approx((2 * 48 + 128) / 1800)


def test_hook_names():
    assert Kind.MLP.hook(3) == "blocks.3.mlp.hook_post" and Kind.HEAD.hook(0) == "blocks.0.attn.hook_z"


# --- random twins


@given(unit_sets(), st.integers(0, 2**31))
def test_a_twin_has_the_same_count_per_layer_and_kind(a, seed):
    twin = a.random_twin(seed)
    for kind in Kind:
        assert (twin.masks[kind].sum(1) == a.masks[kind].sum(1)).all()


@given(unit_sets(), st.integers(0, 2**31))
def test_a_twin_overlaps_only_where_it_must(a, seed):
    twin = a.random_twin(seed)
    for kind in Kind:
        inside = a.masks[kind].sum(1)
        must = np.maximum(0, inside - (GRID.width(kind) - inside))
        assert ((a & twin).masks[kind].sum(1) == must).all()


def test_a_twin_depends_on_its_seed_only():
    grid = UnitGrid(2, 200, 8, 1, 1, 1000)
    units = UnitSet.of(grid, [(Kind.MLP, 0, j) for j in range(20)] + [(Kind.HEAD, 1, 3)])
    assert units.random_twin(7) == units.random_twin(7)
    assert units.random_twin(7) != units.random_twin(8)


def test_twins_cover_the_outside_evenly():
    grid = UnitGrid(1, 10, 1, 1, 1, 100)
    units = UnitSet.of(grid, [(Kind.MLP, 0, 0), (Kind.MLP, 0, 1)])
    counts = sum(units.random_twin(seed).masks[Kind.MLP][0].astype(int) for seed in range(400))
    assert (counts[:2] == 0).all()
    assert counts[2:].sum() == 800 and counts[2:].min() > 70 and counts[2:].max() < 130  # 100 expected, sd 9


# --- cuts


def test_top_units_cut_each_kind_at_the_same_share():
    ranking = {Kind.MLP: np.arange(15.0).reshape(3, 5), Kind.HEAD: -np.arange(6.0).reshape(3, 2)}
    got = top_units(GRID, ranking, 1 / 3)
    assert members(got) == {("mlp", 2, j) for j in range(5)} | {("head", 0, 0), ("head", 0, 1)}


def test_ties_go_to_the_lower_layer_and_index():
    ranking = {Kind.MLP: np.zeros((3, 5)), Kind.HEAD: np.zeros((3, 2))}
    assert members(top_units(GRID, ranking, 0.4)) == (
        {("mlp", 0, j) for j in range(5)} | {("mlp", 1, 0)} | {("head", 0, 0), ("head", 0, 1)}
    )


def test_the_ends_of_a_cut():
    ranking = {k: np.zeros((3, GRID.width(k))) for k in Kind}
    assert len(top_units(GRID, ranking, 0)) == 0 and len(top_units(GRID, ranking, 1)) == 21


@pytest.mark.parametrize(
    ("text", "roles"), [("SCU", [Role.SCU]), ("scu, CU ,", [Role.SCU, Role.CU]), ("RU,UCU", [Role.RU, Role.UCU])]
)
def test_roles_are_read(text, roles):
    assert parse_roles(text) == roles


@pytest.mark.parametrize("text", ["", " , ", "SCU,XYZ", "SCU;CU"])
def test_bad_roles_say_what_is_allowed(text):
    with pytest.raises(BadInput, match="SCU, UCU, CU, RU"):
        parse_roles(text)


# --- the units file


def table(provenance: dict | None = None) -> UnitTable:
    rng = np.random.default_rng(0)
    scores = [{k: rng.normal(size=(3, GRID.width(k))) for k in Kind} for _ in range(2)]
    scu = UnitSet.of(GRID, [(Kind.MLP, 0, 4), (Kind.HEAD, 2, 1)])
    ucu = UnitSet.of(GRID, [(Kind.MLP, 1, 0)])
    ru = UnitSet.of(GRID, [(Kind.HEAD, 0, 0), (Kind.MLP, 2, 2)])
    everything = UnitSet(GRID, {k: np.ones((3, GRID.width(k)), dtype=bool) for k in Kind})
    roles = {Role.SCU: scu, Role.UCU: ucu, Role.RU: ru, Role.CU: everything - scu - ucu - ru}
    return UnitTable(GRID, *scores, roles, provenance or {"score": "wifv", "seed": 3, "prompts": ["a\u2028b"]})


def assert_same(a: UnitTable, b: UnitTable) -> None:
    assert a.grid == b.grid and a.provenance == b.provenance
    for kind in Kind:
        np.testing.assert_array_equal(a.safety[kind], b.safety[kind])
        np.testing.assert_array_equal(a.utility[kind], b.utility[kind])
    assert all(a.roles[r] == b.roles[r] for r in Role)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "units.parquet"
    table().save(path)
    return path


def rewrite(path: Path, change) -> None:
    """The saved file with its frame changed and its metadata kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    old = pq.read_table(path)
    new = pa.Table.from_pandas(change(old.to_pandas()), preserve_index=False)
    pq.write_table(new.replace_schema_metadata(old.schema.metadata), path)


def test_save_and_load(saved: Path):
    assert_same(UnitTable.load(saved), table())
    assert_same(UnitTable.load(saved, GRID), table())
    assert [p.name for p in saved.parent.iterdir()] == ["units.parquet"]


def test_optional_columns_are_kept(tmp_path: Path):
    whole = replace(table(), importance=table().utility, confidence=table().safety)
    whole.save(tmp_path / "u.parquet")
    read = UnitTable.load(tmp_path / "u.parquet")
    assert_same(read, whole)
    for kind in Kind:
        np.testing.assert_array_equal(read.importance[kind], whole.importance[kind])
        np.testing.assert_array_equal(read.confidence[kind], whole.confidence[kind])


def test_the_order_of_rows_does_not_matter(saved: Path):
    rewrite(saved, lambda frame: frame.sample(frac=1, random_state=1))
    assert_same(UnitTable.load(saved), table())


def test_the_frame_has_one_row_a_unit():
    frame = table().frame()
    assert list(frame.columns) == ["kind", "layer", "index", "I_S", "I_U", "role"] and len(frame) == 21
    row = frame[(frame.kind == "head") & (frame.layer == 2) & (frame["index"] == 1)].iloc[0]
    assert row.role == "SCU" and table().safety[Kind.HEAD][2, 1] == row.I_S


def test_units_of_roles():
    t = table()
    assert t.units([Role.SCU, Role.RU]) == t.roles[Role.SCU] | t.roles[Role.RU]
    assert len(t.units(Role)) == 21 and len(t.units([])) == 0


def test_another_models_file_is_refused(saved: Path):
    with pytest.raises(BadInput, match=r"5 neurons.*this one has 3.* 6.* 2"):
        UnitTable.load(saved, OTHER)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="units file"):
        UnitTable.load(tmp_path / "no.parquet")


@pytest.mark.parametrize("content", [b"", b"prompt\nhello\n", b"PAR1", b"PAR1garbagePAR1", b'{"grid": 1}'])
def test_other_files_are_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "units.parquet"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="ssah-lens units MODEL"):
        UnitTable.load(path)


def test_another_parquet_file_is_refused(tmp_path: Path):
    import pandas as pd

    pd.DataFrame({"a": [1, 2]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="units file"):
        UnitTable.load(tmp_path / "a.parquet")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_file_is_refused(saved: Path, keep: float):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(BadInput, match="not a whole units file"):
        UnitTable.load(saved)


def test_a_flipped_byte_among_the_data_is_noticed(saved: Path):
    data = saved.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little")
    wrong = []
    for at in range(4, len(data) - 8 - footer, 7):
        saved.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:
            got = UnitTable.load(saved)
        except BadInput:
            continue
        if not got.frame().equals(table().frame()):
            wrong.append(at)
    assert not wrong, f"other scores or roles were read without a word after a change of byte {wrong}"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda f: f.iloc[:-1], id="row missing"),
        pytest.param(lambda f: f.drop(columns="I_U"), id="column missing"),
        pytest.param(lambda f: f.assign(layer=f.layer + 1), id="layer outside"),
        pytest.param(lambda f: f.assign(layer=f.layer - 1), id="negative layer"),
        pytest.param(lambda f: f.assign(index=f["index"].replace(1, 0)), id="a unit twice"),
        pytest.param(lambda f: f.assign(role=f.role.replace("CU", "XX")), id="unknown role"),
        pytest.param(lambda f: f.assign(role=f.role.replace("CU", "")), id="unit without role"),
        pytest.param(lambda f: f.assign(I_S="much"), id="score not a number"),
    ],
)
def test_a_table_that_is_not_one_row_a_unit_is_refused(saved: Path, change):
    rewrite(saved, change)
    with pytest.raises(BadInput):
        UnitTable.load(saved)


@pytest.mark.parametrize(
    "meta", [{"provenance": {}}, {"grid": {"n_layers": 3}}, {"grid": None, "provenance": {}}, [], "x"]
)
def test_damaged_metadata_is_refused(saved: Path, meta):
    import pyarrow.parquet as pq

    old = pq.read_table(saved)
    pq.write_table(old.replace_schema_metadata({b"ssah_lens": json.dumps(meta).encode()}), saved)
    with pytest.raises(BadInput):
        UnitTable.load(saved)


def test_metadata_without_provenance_is_refused(saved: Path):
    import pyarrow.parquet as pq

    old = pq.read_table(saved)
    meta = json.loads(old.schema.metadata[b"ssah_lens"])
    del meta["provenance"]
    pq.write_table(old.replace_schema_metadata({b"ssah_lens": json.dumps(meta).encode()}), saved)
    with pytest.raises(BadInput):
        UnitTable.load(saved)


def test_a_failed_save_leaves_the_old_file_and_no_other(saved: Path):
    before = saved.read_bytes()
    with pytest.raises(TypeError):
        table({"seed": object()}).save(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["units.parquet"]


def test_a_save_that_cannot_be_finished_leaves_nothing(tmp_path: Path):
    target = tmp_path / "units.parquet"
    target.mkdir()  # the last step, the renaming, must fail
    with pytest.raises(BadInput, match="another --out"):
        table().save(target)
    assert [p.name for p in tmp_path.iterdir()] == ["units.parquet"] and not any(target.iterdir())
