"""Unit scores behind one signature."""

from __future__ import annotations

from ssah_lens.errors import BadInput
from ssah_lens.score.base import Score

_WHERE = {
    "attribution": ("attribution", "attribution"),
    "attribution-ig": ("attribution", "integrated"),
    "contrast": ("contrast", "contrast"),
    "exact": ("exact", "exact"),
    "mask": ("mask", "mask"),
    "snip": ("snip", "snip"),
    "wanda": ("wanda", "wanda"),
    "wifv": ("wifv", "wifv"),
}
"""Score -> its file and function there."""
NAMES = tuple(_WHERE)
NEED_TOKENS = ("attribution", "attribution-ig", "exact", "mask")
"""Scores that read the refusal score, and so need the tokens that open refusals."""


def score(name: str) -> Score:
    """The score of this name.

    Raises:
        BadInput: no such score.
    """
    if name not in NAMES:
        raise BadInput(f"no score '{name}': allowed are {', '.join(NAMES)}")
    from importlib import import_module

    file, function = _WHERE[name]
    return getattr(import_module(f"ssah_lens.score.{file}"), function)
