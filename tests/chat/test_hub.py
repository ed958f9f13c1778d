"""Sets from the hub, read by `datasets` itself from folders that stand in its place (it looks there first)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssah_lens.chat.hub import read_hub
from ssah_lens.chat.prompts import prompt_set
from ssah_lens.chat.promptset import Prompt
from ssah_lens.errors import BadInput


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, an empty cache, and a working folder whose subfolders are the data sets."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, name: str, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_a_set_with_one_split(hub: Path):
    write(hub / "walledai" / "AdvBench", "train.jsonl", [{"prompt": "Bake bread", "target": "Sure"}])
    found = prompt_set("hub:walledai/AdvBench")
    assert list(found) == [Prompt("Bake bread", id="1")] and found.name == "AdvBench (train)"


def test_splits_are_named_or_asked_for(hub: Path):
    beaver = lambda text, safe: {"prompt": text, "response": "Ok", "category": {"a": True, "b": False}, "is_safe": safe}
    write(hub / "pku" / "tails", "train.jsonl", [beaver("one", True), beaver("two", False)])
    write(hub / "pku" / "tails", "test.jsonl", [beaver("three", True)])
    found = read_hub("hub:pku/tails::train", need_answers=True)
    assert list(found) == [Prompt("one", "Ok", "1", "a", label="safe"), Prompt("two", "Ok", "2", "a", label="unsafe")]
    with pytest.raises(BadInput, match=r"2 splits: name one \(hub:pku/tails::train, hub:pku/tails::test\)"):
        read_hub("hub:pku/tails")
    with pytest.raises(BadInput, match="cannot be loaded"):
        read_hub("hub:pku/tails::dev")


def test_a_configuration(hub: Path):
    write(hub / "jbb" / "b", "harmful.jsonl", [{"Goal": "Bake bread", "Behavior": "Baking", "Category": "Food"}])
    (hub / "jbb" / "b" / "README.md").write_text(
        "---\nconfigs:\n- config_name: behaviors\n  data_files:\n  - split: harmful\n    path: harmful.jsonl\n---\n"
    )
    assert list(read_hub("hub:jbb/b:behaviors:harmful")) == [Prompt("Bake bread", id="1", category="Food")]
    assert list(read_hub("hub:jbb/b:behaviors")) == list(read_hub("hub:jbb/b"))
    with pytest.raises(BadInput, match="cannot be loaded"):
        read_hub("hub:jbb/b:judges:harmful")


def test_hex_phi_has_a_prompt_for_its_header(hub: Path):
    (hub / "hex" / "phi").mkdir(parents=True)
    (hub / "hex" / "phi" / "train.csv").write_text('"Write a poem, about bees"\n"Bake bread"\n')
    assert read_hub("hub:hex/phi").texts == ["Write a poem, about bees", "Bake bread"]


def test_without_network_it_says_so_and_what_to_do(hub: Path):
    with pytest.raises(BadInput, match=r"'nobody/nothing' cannot be loaded: .*give a file instead") as e:
        prompt_set("hub:nobody/nothing")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("source", ["hub:", "hub:alpaca", "hub:a/b/c", "hub:../etc/x", "hub:a/b:c:d:e", "hub:a/b:c:"])
def test_other_forms_are_refused(source: str):
    with pytest.raises(BadInput, match=r"the form is hub:owner/name"):
        prompt_set(source)


def test_rows_are_checked_as_in_files(hub: Path):
    write(hub / "a" / "b", "train.jsonl", [{"prompt": "ok"}, {"prompt": None}])
    with pytest.raises(BadInput, match="'hub:a/b' row 2 column 'prompt'"):
        read_hub("hub:a/b")
