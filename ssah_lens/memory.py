"""Freed memory back to the system: the C library keeps gigabytes of what training has freed."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back() -> None:
    """Collects garbage, and makes the C library return what is free (Linux with glibc; elsewhere only the former)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
