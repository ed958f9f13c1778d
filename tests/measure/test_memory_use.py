"""Memory does not grow with the number of prompts (`benchmarks/memory.py` shows it at 100 and 2,000, for all parts)."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"
PEAK = Path("/proc/self/clear_refs")
PARTS = ["refusal scores", "loss of answers", "behaviour with KL from a reference", "activation moments"]


def megabytes(name: str) -> float:
    """VmRSS (now) or VmHWM (the most since the mark was last reset)."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024


@pytest.mark.skipif(not os.access(PEAK, os.W_OK), reason="needs Linux")
def test_four_hundred_prompts_take_no_more_memory_than_a_hundred():
    """A number per prompt and word of the vocabulary would be 60 MB more."""
    spec = importlib.util.spec_from_file_location("memory_benchmark", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    model = benchmark.micro()
    peaks = {}
    for n in (100, 100, 400):  # the first round takes what memory is taken once
        PEAK.write_text("5")
        for name, run in benchmark.measurements(model, n).items():
            if name in PARTS:
                run()
        peaks[n] = megabytes("VmHWM")
    assert peaks[400] - peaks[100] < 45, peaks
