"""A saved model is whole or absent."""

import resource
from pathlib import Path

import pytest
import torch

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.save import check_free, save_model
from ssah_lens.errors import BadInput


def test_a_saved_model_comes_back_bit_for_bit(micro: ChatModel, tmp_path: Path):
    back = ChatModel.load(str(save_model(micro, tmp_path / "m")))
    for (name, a), b in zip(micro.plain.named_parameters(), back.plain.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert back.prompt_tokens("Hi") == micro.prompt_tokens("Hi") and back.turn_end == micro.turn_end


def test_a_full_disk_leaves_nothing_behind(micro: ChatModel, tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(BadInput, match="nothing was left there"):
            save_model(micro, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_not_overwritten(micro: ChatModel, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="exists already"):
        check_free(tmp_path)
    with pytest.raises(BadInput):
        save_model(micro, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_place_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be made"):
        check_free(tmp_path / "file" / "m")
