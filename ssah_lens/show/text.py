"""Numbers and untrusted text as the report prints them."""

from __future__ import annotations

import math
import unicodedata

from ssah_lens.stats import Estimate

SHOWN_CHARACTERS = 200
"""Prompts and responses are cut at this length."""
NOTHING = 1e-6
"""Rounding error of a rate's interval, not a number to print."""
KEPT_CONTROLS = "\n\t"


def number(value: float) -> str:
    """Two decimals, more for a small number that two would hide, none for a large one, '4.0e8' for a vast one."""
    if not math.isfinite(value):
        return "not finite"
    if abs(value) >= 100_000:
        return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < NOTHING:
        return "0.00"
    if abs(value) < 0.005:
        return f"{value:.1g}"
    return f"{value:.2f}"


def interval(e: Estimate) -> str:
    """'0.97 [0.89, 0.99]'; the value alone where there is no interval."""
    if e.low is None or e.high is None:
        return number(e.value)
    return f"{number(e.value)} [{number(e.low)}, {number(e.high)}]"


def cell(e: Estimate | None) -> str:
    """An estimate in a table: '0.97 [0.89, 0.99] n=60'."""
    return "not measured" if e is None else f"{interval(e)} n={e.n}"


def percent(value: float | Estimate) -> str:
    """'97%'; a decimal more below 10%, so that 1.3% and 0.4% stay apart."""
    share = value.value if isinstance(value, Estimate) else value
    rounded = f"{share:.1%}" if 0 < abs(share) < 0.0995 else f"{share:.0%}"
    return rounded.replace(".0%", "%")


def percents(e: Estimate) -> str:
    """'97% (95% interval 89% to 99%, n = 60)'."""
    if e.low is None or e.high is None:
        return f"{percent(e)} (n = {e.n})"
    return f"{percent(e)} (95% interval {percent(e.low)} to {percent(e.high)}, n = {e.n})"


def points(value: float) -> str:
    """A difference of shares in percentage points: '62 points'."""
    n = round(value * 100)
    return f"{n} point" if abs(n) == 1 else f"{n} points"


def point_interval(e: Estimate) -> str:
    """'62 points [48, 74]'."""
    if e.low is None or e.high is None:
        return points(e.value)
    return f"{points(e.value)} [{e.low * 100:.0f}, {e.high * 100:.0f}]".replace("-0,", "0,").replace("-0]", "0]")


def count(n: int, one: str, many: str | None = None) -> str:
    """'1 random set', '3 random sets'."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def listed(items: list[str]) -> str:
    """'a, b and c'."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def clean(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Untrusted text, printable and cut. Escaping is the template's work."""
    shown = printable(text)
    return shown if len(shown) <= limit else shown[:limit].rstrip() + " …"


def printable(text: str) -> str:
    """Untrusted text with what could rearrange or hide its neighbours (controls, escapes, bidi marks) as U+FFFD."""
    return "".join(
        c if c in KEPT_CONTROLS or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd" for c in text
    )
