"""How long `import ssah_lens` and `ssah-lens --help` take, over an interpreter that does nothing.

Run it with nothing else on the machine: `python benchmarks/startup.py`. Every round starts each command once, in turn,
so that a slow moment of the machine falls on all of them alike.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

BARE = "a bare interpreter"
COMMANDS = {
    BARE: ["-c", "pass"],
    "`import ssah_lens`": ["-c", "import ssah_lens"],
    "`ssah-lens --help`": ["-m", "ssah_lens", "--help"],
    "`ssah-lens models`": ["-m", "ssah_lens", "models"],
    "`import torch`, for comparison": ["-c", "import torch"],
}


def once(words: list[str]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time, of one fresh process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime


def main(rounds: int = 15) -> None:
    """Prints a table of medians."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for words in COMMANDS.values():
        once(words)  # reads the files from the disk
    for _ in range(rounds):
        for name, words in COMMANDS.items():
            seen[name].append(once(words))
    median = {name: [statistics.median(column) for column in zip(*times, strict=True)] for name, times in seen.items()}
    print(f"| started {rounds} times | seconds | over bare | processor seconds |\n|---|---|---|---|")
    for name, (wall, processor) in median.items():
        print(f"| {name} | {wall:.2f} | {wall - median[BARE][0]:.2f} | {processor:.2f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
