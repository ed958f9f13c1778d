"""What strangers write (prompt files, models, tokenizers, units files) is data: shown as text, never run, obeyed or
followed to another place."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import read_prompts
from ssah_lens.chat.save import save_model
from ssah_lens.config import study_config
from ssah_lens.errors import BadInput
from ssah_lens.score.base import Scores
from ssah_lens.score.roles import Sizes, assign
from ssah_lens.units import Kind, UnitGrid, UnitTable

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil"
"""Clears the screen, renames the window, colours, and writes right to left."""
HTML = "<script>owned()</script><img src=x onerror=owned()>"


def assert_plain(text: str) -> None:
    """No character that a terminal would obey."""
    bad = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"}
    assert not bad, f"{bad} in {text!r}"


def units_file(path: Path, grid: UnitGrid, **provenance: object) -> Path:
    rng = np.random.default_rng(0)
    values = [{k: rng.normal(size=(grid.n_layers, grid.width(k))) for k in Kind} for _ in range(2)]
    roles = assign(grid, Scores(*values, signed=True), Sizes(0.2, 0.3, 0.1))
    UnitTable(grid, *values, roles, {"signed": True, **provenance}).save(path)
    return path


# ---- terminal escapes


def test_escapes_in_a_prompt_file_are_not_printed(tmp_path: Path, lens: Callable):
    columns = tmp_path / "a.csv"
    columns.write_text(f"{ESCAPES},size\nred,1\n", encoding="utf-8")
    twice = tmp_path / "b.jsonl"
    twice.write_text("".join(json.dumps({"prompt": "a", "id": ESCAPES}) + "\n" for _ in range(2)), encoding="utf-8")
    for file in (columns, twice):
        said = lens("refusal", "smollm2-135m", "--harmful", file)
        assert said.code == 2 and "evil" in said.err
        assert_plain(said.err)


def test_escapes_in_a_units_file_are_not_printed(micro: ChatModel, tmp_path: Path, lens: Callable):
    file = units_file(tmp_path / "u.parquet", micro.grid, score=ESCAPES, model=ESCAPES)
    said = lens("transfer", file, file)
    assert said.code == 0 and "evil" in said.out, said.err
    assert_plain(said.out + said.err)


def test_escapes_in_names_and_notes_are_not_printed(
    micro: ChatModel, micro_folder: Path, tmp_path: Path, lens: Callable, monkeypatch: pytest.MonkeyPatch
):
    """A folder out of an archive may be called anything; a units file may say that it was made from anything."""
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(micro_folder, tmp_path / ESCAPES.replace("/", ""))
    (tmp_path / "p.txt").write_text("How do I bake bread?\n")
    file = units_file(tmp_path / "u.parquet", micro.grid, score="mask", model=f"another {ESCAPES}")
    said = lens("refusal", folder.name, "--harmful", "p.txt", "--max-new-tokens", "2")
    assert said.code == 0 and "evil" in said.out and "loading" in said.err
    assert_plain(said.out + said.err)
    (tmp_path / "tune.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    words = ["--data", "tune.jsonl", "--freeze", file.name, "--out", "t", "--method", "lora"]
    said = lens("finetune", folder.name, *words)
    assert said.code == 2 and "was made from" in said.err and "cannot hold single units" in said.err
    assert_plain(said.out + said.err)


@pytest.fixture
def hostile_model(make_llama: Callable, make_tokenizer: Callable) -> ChatModel:
    """Tokens of its vocabulary are escapes and markup; 'good' and 'evil' are one token each."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([ESCAPES, HTML, " good", " bad"])
    return ChatModel(make_llama(tokenizer), tokenizer, "hostile")


def test_tokens_are_shown_as_text(hostile_model: ChatModel, tmp_path: Path, lens: Callable):
    """In the terminal and in the pages that `patch` writes."""
    folder, out = save_model(hostile_model, tmp_path / "hostile"), tmp_path / "out"
    text = f"say{HTML}{ESCAPES}"
    said = lens("patch", folder, "--clean", f"{text} good", "--corrupted", f"{text} bad", "--out", out)
    assert said.code == 0, said.err
    assert_plain(said.out + said.err)
    page = (out / "patching.html").read_text(encoding="utf-8")
    drawn = page[page.rindex("Plotly.newPlot") :]  # what stands before it is plotly itself
    assert "script" in drawn and "<script>" not in drawn and "<img" not in drawn
    assert "\x1b" not in page and "\x9b" not in page
    labels = json.loads((out / "patching.json").read_text())["labels"]
    assert any(HTML in token for token in labels["pos"]), "the record keeps the token itself"


# ---- pickles, and code that comes with a model


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def bomb(tmp_path: Path) -> tuple[bytes, Path]:
    mark = tmp_path / "exploded"
    return pickle.dumps(Bomb(mark)), mark


def test_the_bomb_explodes(bomb: tuple[bytes, Path]):
    """Else the tests below would show nothing."""
    pickle.loads(bomb[0])
    assert bomb[1].is_dir()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.gguf", "adapter.pt"])
def test_a_pickle_posing_as_weights_is_not_read(
    name: str, bomb: tuple[bytes, Path], micro_folder: Path, tmp_path: Path, lens: Callable
):
    folder = Path(shutil.copytree(micro_folder, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(bomb[0])
    target = folder / name if name.endswith(".gguf") else folder
    said = lens("refusal", target, "--harmful", "harmful:test", "--limit", "1", "--quiet")
    assert said.code == 2 and said.err.count("\n") == 1, said.err
    assert not bomb[1].exists()


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_cannot_name_a_pickle(
    index: str, bomb: tuple[bytes, Path], micro_folder: Path, tmp_path: Path, lens: Callable
):
    folder = Path(shutil.copytree(micro_folder, tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "shard.bin").write_bytes(bomb[0])
    weight_map = {"model.norm.weight": "shard.bin"}
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    said = lens("refusal", folder, "--harmful", "harmful:test", "--limit", "1", "--quiet")
    assert said.code == 2 and said.err.count("\n") == 1, said.err
    assert not bomb[1].exists()


@pytest.mark.parametrize("name", ["u.parquet", "p.jsonl", "p.json", "p.csv", "p.txt", "p.txt.gz", "c.toml"])
def test_a_pickle_posing_as_data_is_not_read(name: str, bomb: tuple[bytes, Path], tmp_path: Path):
    file = tmp_path / name
    file.write_bytes(bomb[0])
    read = {"u.parquet": UnitTable.load, "c.toml": study_config}.get(name, read_prompts)
    with pytest.raises(BadInput):
        read(file)
    assert not bomb[1].exists()


def test_a_pickle_posing_as_a_checkpoint_is_not_read(bomb: tuple[bytes, Path], micro_copy: ChatModel, tmp_path: Path):
    from ssah_lens.train.checkpoint import FILE, Checkpoints
    from ssah_lens.train.loop import TrainSettings, train

    (tmp_path / FILE).write_bytes(bomb[0])
    rows = micro_copy.rows(["a"], [micro_copy.response_tokens("b")])
    with pytest.raises(BadInput, match="is damaged"):
        train(micro_copy, rows, TrainSettings(1), checkpoints=Checkpoints(tmp_path))
    assert not bomb[1].exists()


def test_a_pickle_posing_as_a_stored_sweep_is_not_read(bomb: tuple[bytes, Path], micro: ChatModel, tmp_path: Path):
    from ssah_lens.intervene.metric import logit_difference
    from ssah_lens.intervene.sites import Site
    from ssah_lens.intervene.sweep import Edits, Fill, sweep

    edits = [Edits(Site.NEURON, 0, np.array([0, 1]))]
    again = lambda: sweep(micro, micro.rows(["a"]), logit_difference([1], [2]), edits, Fill("zero"), 1, store=store)
    store = tmp_path / "values.npy"
    again()
    for content in (bomb[0], np.lib.format.magic(1, 0) + bomb[0]):
        store.write_bytes(content)
        with pytest.raises(BadInput, match="damaged"):
            again()
    np.save(store, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="damaged"):
        again()
    assert not bomb[1].exists()


def test_code_and_cards_that_come_with_a_model_are_not_run(micro_folder: Path, tmp_path: Path, lens: Callable):
    folder, mark = Path(shutil.copytree(micro_folder, tmp_path / "model")), tmp_path / "ran"
    code = f"import os\nos.mkdir({str(mark)!r})\nclass Own: ...\n"
    for name in ("own.py", "modeling_own.py", "tokenization_own.py", "__init__.py", "conftest.py", "sitecustomize.py"):
        (folder / name).write_text(code)
    (folder / "README.md").write_text(f"---\na: !!python/object/apply:os.mkdir [{mark}]\n---\n{HTML}\n{ESCAPES}\n")
    for file, entry in {
        "config.json": {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "modeling_own.Own"}},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}},
    }.items():
        found = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(found | entry))
    said = lens("refusal", folder, "--harmful", "harmful:test", "--limit", "1", "--max-new-tokens", "2", "--quiet")
    assert said.code in (0, 2) and "Traceback" not in said.err
    assert_plain(said.out + said.err)
    assert not mark.exists()


# ---- paths


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "smollm2-135m/../../evil", "..", ""])
def test_fetch_takes_names_only(name: str, lens: Callable):
    said = lens("fetch", name)
    assert said.code == 2 and "the names are smollm2-135m" in said.err


def test_ids_and_categories_are_no_file_names(micro_folder: Path, tmp_path: Path, lens: Callable):
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    row = {"prompt": "hello", "id": "../../evil", "category": "/tmp/evil", "label": "../evil"}
    (deep / "p.jsonl").write_text(json.dumps(row) + "\n")
    said = lens("refusal", micro_folder, "--harmful", deep / "p.jsonl", "--max-new-tokens", "2", "--json", "--quiet")
    assert said.code == 0, said.err
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "b", "p.jsonl"]


# ---- things that unpack, nest or multiply


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 15_000,
        "a = " + "{b = " * 2_500 + "1" + "}" * 2_500,
        "[" + "a." * 7_500 + "a]\nb = 1",
        "a." * 7_500 + "a = 1",
        "[[" + "]]\n[[".join("ab" for _ in range(2_000)) + "]]",
        "a = " + "9" * 15_000,
        'a = """' + "\n" * 15_000 + '"""',
        "".join(f"k{i} = 1\n" for i in range(1_600)),
    ],
    ids=["lists", "tables", "header", "key", "arrays", "digits", "lines", "keys"],
)
def test_a_toml_bomb_is_refused_at_once(text: str, tmp_path: Path):
    (tmp_path / "bomb.toml").write_text(text)
    assert len(text) < 16_000, "a larger one is not even read"
    start = time.process_time()
    with pytest.raises(BadInput) as e:
        study_config(tmp_path / "bomb.toml")
    assert time.process_time() - start < 5
    assert len(str(e.value)) < 600 and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "text",
    [
        '{"prompt": ' * 50_000,
        '[{"prompt": "a", "x": ' + "[" * 50_000 + "]" * 50_000 + "}]",
        '[{"prompt": "a", "id": ' + "9" * 100_000 + "}]",
        '[{"prompt": 1e99999}]',
        "[" + "[]," * 100_000 + "[]]",
    ],
    ids=["objects", "lists", "digits", "infinity", "rows"],
)
def test_a_json_bomb_is_refused_at_once(text: str, tmp_path: Path):
    (tmp_path / "bomb.json").write_text(text)
    start = time.process_time()
    with pytest.raises(BadInput) as e:
        read_prompts(tmp_path / "bomb.json")
    assert time.process_time() - start < 10 and "\n" not in str(e.value)


def test_a_units_file_that_unpacks_to_billions_of_rows_is_refused_unread(micro: ChatModel, tmp_path: Path):
    """A constant column takes next to nothing in Parquet, however long it is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = units_file(tmp_path / "u.parquet", micro.grid, score="mask")
    old = pq.read_table(file)
    with pq.ParquetWriter(file, old.schema) as writer:
        n = 2_000_000
        columns = [pa.array(np.zeros(n), pa.float64()).cast(f.type) if pa.types.is_primitive(f.type)
                   else pa.DictionaryArray.from_arrays(pa.array(np.zeros(n), pa.int32()), ["x"]).cast(f.type)
                   for f in old.schema]  # fmt: skip
        writer.write_table(pa.Table.from_arrays(columns, schema=old.schema))
    assert file.stat().st_size < 100_000
    start = time.process_time()
    with pytest.raises(BadInput, match="not a whole units file"):
        UnitTable.load(file, micro.grid)
    assert time.process_time() - start < 0.2, "reading two million rows takes longer"
