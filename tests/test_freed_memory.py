"""What the C library does with freed memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import resource, torch
from ssah_lens.memory import give_back, keep_freed
{}
block = lambda: [torch.empty(2**20).fill_(1.0) for _ in range(30)]  # 30 of 4 MiB, all freed at once
block()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    block()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
resident = lambda: int(open("/proc/self/statm").read().split()[1])
held = [torch.empty(2 * 2**20).fill_(1.0) for _ in range(20)]
del held
kept = resident()
give_back()
print(faults, kept - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux is meant; others decide for themselves")
def test_freed_memory_is_taken_again_until_it_is_given_back():
    """120 MB are freed 20 times: the system takes pages back each time, or hardly any until it is asked to."""
    run = lambda first: [
        int(n) for n in subprocess.run(
            [sys.executable, "-c", MEASURE.format(first)], capture_output=True, text=True, check=True
        ).stdout.split()
    ]  # fmt: skip
    faults, returned = run("keep_freed()")
    assert 4 * faults < run("")[0] and returned > 20_000
