"""Where a model runs: refused before the weights are read, with what to do."""

from __future__ import annotations

import pytest
import torch

from ssah_lens.chat import device as module
from ssah_lens.chat.device import check_device, count_weights
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cpu cpu", "meta", "xla"])
def test_no_such_device(name: str):
    with pytest.raises(BadInput, match="cannot be used: allowed are cpu, cuda.*try --device cpu"):
        check_device(name)


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_here():
    for name, why in (("cuda", "no NVIDIA GPU"), ("cuda:1", "no NVIDIA GPU"), ("mps", "no Apple GPU")):
        with pytest.raises(BadInput, match=f"device '{name}' cannot be used: .*{why}; try --device cpu"):
            check_device(name)
    assert check_device("auto") == torch.device("cpu") == check_device("cpu")


def test_a_model_that_does_not_fit_is_refused_with_its_size(micro: ChatModel, tmp_path, monkeypatch):
    """3 GB free; the header says how many numbers there are, whatever their format in the file."""
    micro.plain.save_pretrained(tmp_path)
    micro.tokenizer.save_pretrained(tmp_path)
    numbers = count_weights(tmp_path)
    assert numbers == sum(p.numel() for p in micro.plain.parameters())
    monkeypatch.setattr(module, "free_memory", lambda device: 3 * numbers)
    with pytest.raises(BadInput, match="GB in float32, cpu has .* GB free: take --dtype bfloat16 .*, or a device that"):
        ChatModel.load(str(tmp_path))
    monkeypatch.setattr(module, "free_memory", lambda device: numbers)
    with pytest.raises(BadInput, match="GB free: take a device that holds the whole model .it is not spread"):
        ChatModel.load(str(tmp_path), dtype="bfloat16")
    monkeypatch.setattr(module, "free_memory", lambda device: 2 * numbers)
    assert ChatModel.load(str(tmp_path), "auto", "bfloat16").plain.dtype == torch.bfloat16


def test_what_is_free_is_known_or_none():
    free = module.free_memory(torch.device("cpu"))
    assert free is None or 0 < free < 2**50
    assert module.free_memory(torch.device("mps")) is None


def test_loading_tells_what_a_reader_must_know(micro: ChatModel, tmp_path):
    micro.plain.save_pretrained(tmp_path)
    micro.tokenizer.save_pretrained(tmp_path)
    told: list[str] = []
    ChatModel.load(str(tmp_path), dtype="float16", note=told.append, system="Be brief.")
    assert any(line.startswith("note: ") and "'Be brief.'" in line for line in told)
    assert any("float16, which keeps 11 significant bits" in line for line in told)
    told.clear()
    ChatModel.load(str(tmp_path), note=told.append)
    assert told == []
