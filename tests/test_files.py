"""A file is there when it is whole; else what was there before is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_full_disk import full_disk

from ssah_lens.errors import BadInput
from ssah_lens.files import write_tensors, write_whole


def test_a_file_is_written_with_the_folders_on_the_way(tmp_path: Path):
    file = tmp_path / "a" / "b" / "x.txt"
    assert write_whole(file, lambda partial: partial.write_text("all")) == file
    assert file.read_text() == "all" and list(file.parent.iterdir()) == [file]


def test_it_has_its_name_only_when_it_is_whole(tmp_path: Path):
    file = tmp_path / "x.txt"
    file.write_text("before")

    def interrupted(partial: Path) -> None:
        partial.write_text("ha")
        assert file.read_text() == "before"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(file, interrupted)
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


def test_a_full_disk_leaves_the_file_before_it_and_says_what_to_do(tmp_path: Path):
    text, tensors = tmp_path / "x.txt", tmp_path / "x.safetensors"
    write_whole(text, lambda partial: partial.write_text("before"))
    write_tensors(tensors, {"a": torch.ones(2)}, {"n": "1"}, "make room")
    with full_disk(1000):
        with pytest.raises(BadInput, match="x.txt' cannot be written: File too large; choose another place$"):
            write_whole(text, lambda partial: partial.write_text("x" * 2000))
        with pytest.raises(BadInput, match="x.safetensors' cannot be written: .*File too large.*; make room$"):
            write_tensors(tensors, {"a": torch.ones(2000)}, {"n": "2"}, "make room")
    assert text.read_text() == "before" and load_file(tensors)["a"].tolist() == [1, 1]
    assert set(tmp_path.iterdir()) == {text, tensors}
