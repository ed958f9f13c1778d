"""The time said beforehand follows the size of the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssah_lens.study import estimate as module
from ssah_lens.study.estimate import REFERENCE, cores_in_use, estimate, in_company, parameters


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch):
    """Other tests keep the cores busy."""
    monkeypatch.setattr(module, "cores_in_use", lambda: 0.1)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("helped", [("OMP_WAIT_POLICY", "PASSIVE"), ("OMP_NUM_THREADS", "1")])
def test_who_is_not_alone_is_told_what_helps(monkeypatch: pytest.MonkeyPatch, helped):
    assert in_company() == ""
    monkeypatch.setattr(module, "cores_in_use", lambda: 1.4)
    assert "other work keeps 1.4 of" in estimate(3, "smollm2-135m")
    monkeypatch.setenv(*helped)
    assert in_company() == ""


def test_a_core_that_works_is_seen_as_one():
    work = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert cores_in_use() > 0.4
    finally:
        work.kill()
        work.wait()


@pytest.mark.parametrize("model", ["smollm2-135m", "owner/name", "no such folder", "a\0b", "x.gguf", ""])
def test_the_reference_and_a_model_of_unknown_size_get_the_measured_time(model: str):
    assert estimate(3, model) == "about 3 minutes on two CPU cores for smollm2-135m"


def test_a_built_in_model_of_13_times_the_size():
    wanted = "about 40 minutes on two CPU cores (3 minutes for smollm2-135m; this model is 13 times as large)"
    assert estimate(3, "qwen2.5-coder-1.5b") == wanted
    assert estimate(12, "qwen2.5-coder-1.5b").startswith("about 2.6 hours on two CPU cores (12 minutes for")


def test_a_folder_is_counted_by_its_headers(tmp_path: Path):
    save_file({"a": torch.zeros(300, 100), "b": torch.zeros(20_000)}, tmp_path / "model.safetensors")
    assert parameters(str(tmp_path)) == 50_000
    assert f"this model is {REFERENCE / 50_000:.2g} times smaller" in estimate(1, str(tmp_path))
