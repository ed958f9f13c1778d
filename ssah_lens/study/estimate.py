"""How long something takes, said before it begins: what smollm2-135m was measured to take, by the size of the model."""

from __future__ import annotations

import os
from pathlib import Path

REFERENCE = 134_515_008
"""Parameters of smollm2-135m."""
ALIKE = 1.5
"""Models whose sizes differ by less than this are told the same time."""
LOOK = 0.2
"""Seconds for which the processor is watched."""
BUSY = 0.5
"""Cores in use by other work, from which on the user is told."""


def estimate(minutes: float, model: str) -> str:
    """'about 40 minutes on two CPU cores (3 minutes for smollm2-135m; this model is 13 times as large)'.

    Time grows with the parameters, near enough: qwen2.5-coder-1.5b took 10 times as long in the stage direction, and
    had bfloat16 to help. A model of unknown size (on the hub, or a .gguf file) gets the time of smollm2-135m, by name.

    Args:
        minutes: measured with smollm2-135m.
        model: built-in name, folder, .gguf file or hub id; need not exist.
    """
    return _time_alone(minutes, model) + in_company()


def in_company() -> str:
    """What to do when other work has the cores as well; '' when it has not.

    The threads of torch wait for each other in a loop at every one of thousands of small steps, and lose whole slices
    of time when one of them has no core: beside two other processes on two cores a step of the learnt gate took 25 s
    instead of 3, and 9 s with threads that sleep while they wait (which costs a quarter when there is no other work).
    """
    alone = os.environ.get("OMP_NUM_THREADS") == "1"  # nobody to wait for
    if alone or "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return ""
    busy = cores_in_use()
    if busy < BUSY:
        return ""
    return (
        f"; other work keeps {busy:.1f} of {os.cpu_count()} cores busy, which can make this many times slower: "
        "set OMP_WAIT_POLICY=PASSIVE before you start, or wait for a quieter moment"
    )


def cores_in_use() -> float:
    """By everything on this machine, just now."""
    import psutil

    return psutil.cpu_percent(LOOK) / 100 * (os.cpu_count() or 1)


def _time_alone(minutes: float, model: str) -> str:
    size = parameters(model)
    ratio = (size or REFERENCE) / REFERENCE
    if 1 / ALIKE < ratio < ALIKE:
        return f"about {_time(minutes)} on two CPU cores for smollm2-135m"
    scale = f"{ratio:.2g} times as large" if ratio > 1 else f"{1 / ratio:.2g} times smaller"
    return f"about {_time(minutes * ratio)} on two CPU cores ({_time(minutes)} for smollm2-135m; this model is {scale})"


def parameters(model: str) -> int | None:
    """Of a built-in model or a folder, without reading its weights."""
    from ssah_lens.chat.built_in import BUILT_IN
    from ssah_lens.chat.device import count_weights

    if model in BUILT_IN:
        return BUILT_IN[model].parameters
    folder = os.path.expanduser(model)  # os.path, unlike Path, takes any string without raising
    return (count_weights(Path(folder)) or None) if os.path.isdir(folder) else None


def _time(minutes: float) -> str:
    return f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.2g} minutes"
