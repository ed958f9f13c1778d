"""Unit scores behind one signature."""

from __future__ import annotations

from ssah_lens.errors import BadInput
from ssah_lens.score.base import Score

NAMES = ("mask", "wifv")


def score(name: str) -> Score:
    """The score of this name.

    Raises:
        BadInput: no such score.
    """
    if name not in NAMES:
        raise BadInput(f"no score '{name}': allowed are {', '.join(NAMES)}")
    from importlib import import_module

    return getattr(import_module(f"ssah_lens.score.{name}"), name)
