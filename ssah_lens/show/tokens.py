"""Untrusted tokens made visible: what a tokenizer or a model may hold, as text that can be read and does no harm."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥", "\u2028": "↵", "\u2029": "↵", "\u00a0": " "}
JOINERS = "\u200c\u200d"
"""Format characters that emoji and some scripts need, and that hide nothing."""
WORD_JOINER = "\u2060"
"""Invisible. After '<' or '&' it keeps a browser from reading markup, whether or not the text is escaped before."""
CUT = 400
"""No token of a real vocabulary is longer; one that is would only be there to break a page."""


def visible(token: str, limit: int = CUT) -> str:
    """One token as text: line breaks and tabs as marks, controls and text-direction marks as U+FFFD, cut at `limit`.

    A token of spaces alone becomes open boxes, an empty one '∅', so that each takes a place that can be seen.
    """
    shown = "".join(_mark(c) for c in token)
    if not shown.strip(" "):
        shown = "␣" * len(shown) or "∅"
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def no_markup(token: str) -> str:
    """`visible`, and harmless where a library writes it as HTML unescaped: 'a<b' stays 'a<b' to the eye."""
    return "".join(c + WORD_JOINER if c in "<&" else c for c in visible(token))


def drawable(token: str, limit: int) -> str:
    """`visible` with what the font of figures cannot draw (emoji, most scripts) as U+FFFD; trimmed at its ends."""
    shown = visible(token, limit).strip(" ")
    return "".join(c if c == " " or _glyphs().get_char_index(ord(c)) else "\ufffd" for c in shown)


def _mark(character: str) -> str:
    if character in MARKS:
        return MARKS[character]
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn", "Co")
    return "\ufffd" if hidden and character not in JOINERS else character


@lru_cache(maxsize=1)
def _glyphs():
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    return FT2Font(findfont("DejaVu Sans"))
