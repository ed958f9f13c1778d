"""Memory does not grow with the number of prompts (`benchmarks/memory.py` shows it at 100 and 2,000, for all parts)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = ["refusal scores", "loss of answers", "behaviour with KL from a reference", "activation moments"]


def test_four_hundred_prompts_take_no_more_memory_than_a_hundred():
    """A number per prompt and word of the vocabulary would be 60 MB more."""
    got = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "100", "400", *NAMES],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert got.returncode == 0, got.stderr
    lines = [line.split("|") for line in got.stdout.splitlines()[2:]]
    assert [line[1].strip() for line in lines] == NAMES
    few, many = (max(float(line[i]) for line in lines) for i in (3, 5))
    assert many - few < 35, got.stdout
