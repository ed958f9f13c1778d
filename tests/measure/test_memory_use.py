"""Memory does not grow with the number of prompts (`benchmarks/memory.py` shows it at 100 and 2,000, for all parts)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PARTS = ["refusal scores", "loss of answers", "behaviour with KL from a reference", "activation moments"]
MEASURE = f"""
import pathlib, re, memory
model = memory.micro()
for n in (100, 100, 400):  # the first round takes what memory is taken once
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    for name, run in memory.measurements(model, n).items():
        if name in {PARTS}:
            run()
    print("peak", int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text()).group(1)) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which can set the mark of the most memory back")
def test_four_hundred_prompts_take_no_more_memory_than_a_hundred():
    """A number per prompt and word of the vocabulary would be 60 MB more.

    In a process of its own: what other tests have left behind in this one moves its peak by as much.
    """
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, cwd=BENCHMARKS, timeout=300)
    peaks = [float(line.split()[1]) for line in run.stdout.splitlines() if line.startswith("peak")]
    assert len(peaks) == 3, run.stderr
    assert peaks[2] - peaks[1] < 45, peaks
