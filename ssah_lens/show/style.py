"""Colours and the shared look of figures.

The colours are Okabe and Ito's (2008), told apart in every common form of colour blindness; shape, hatching or position
always says the same thing a second time.
"""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from ssah_lens.stats import Estimate

WIDTH = 6.4
"""Inches: every figure is as wide as a text column and grows downwards, so that a phone shows it legibly."""
DPI = 150
INK = "#222222"
BASELINE = "#444444"
RANDOM = "#767676"
"""Random controls, in every figure."""
ROLE_COLOURS = {"SCU": "#D55E00", "UCU": "#0072B2", "CU": "#CC79A7", "RU": "#009E73"}
ROLE_MARKERS = {"SCU": "o", "UCU": "s", "CU": "D", "RU": "^"}
ROLE_NAMES = {"SCU": "safety critical", "UCU": "utility critical", "CU": "complex", "RU": "redundant"}
OUTCOME_COLOURS = {"refused": "#1F3A5F", "fulfilled": "#E69F00", "incoherent": "#D9D9D9"}
OUTCOME_TEXT = {"refused": "#FFFFFF", "fulfilled": INK, "incoherent": INK}
"""Ink on a bar of that colour."""
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "figure.facecolor": "white",
    "figure.titlesize": 12.5,
    "figure.titleweight": "bold",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.6,
    "hatch.linewidth": 0.6,
}


class Shown(Figure):
    """A figure that is drawn where it is a notebook cell's last value, also before anything imported pyplot."""

    def _repr_png_(self) -> bytes:
        return png(self)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws in the shared style and leaves matplotlib's global settings as they were."""

    @functools.wraps(draw)
    def inner(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inner


def new_figure(height: float, title: str, caption: str) -> Figure:
    """An empty figure of the shared width.

    Args:
        height: inches.
        title: what it shows, above everything.
        caption: how to read it, n included; below everything.
    """
    figure = Shown(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.07, w_pad=0.05)
    figure.suptitle(textwrap.fill(title, 58), x=0.01, ha="left")
    caption = caption.replace(" = ", "\u00a0=\u00a0")  # 'n = 30' stays on one line
    figure.supxlabel(textwrap.fill(caption, 90), x=0.01, ha="left", fontsize=9, color="#444444")
    return figure


def legend_above(axes: Axes, handles: Sequence, labels: Sequence[str], *, ncols: int, points: float) -> None:
    """A legend above the axes and, at `points` of distance, above their title; the layout keeps clear of it."""
    shift = ScaledTranslation(0, points / 72, axes.figure.dpi_scale_trans)
    axes.legend(
        handles, labels, loc="lower left", ncols=ncols, bbox_to_anchor=(0, 1), borderaxespad=0, borderpad=0,
        bbox_transform=axes.transAxes + shift, columnspacing=1.4, handlelength=1.8,
    )  # fmt: skip


def percent_axis(axes: Axes, label: str, axis: str = "y") -> None:
    """Makes an axis run from 0 to 100% (data are shares)."""
    from matplotlib.ticker import PercentFormatter

    one = getattr(axes, f"{axis}axis")
    one.set_major_formatter(PercentFormatter(1.0, decimals=0))
    one.set_ticks([0, 0.25, 0.5, 0.75, 1.0])
    getattr(axes, f"set_{axis}lim")(-0.03, 1.04)
    getattr(axes, f"set_{axis}label")(label)


def ratio_axis(axes: Axes, label: str) -> None:
    """Makes the y axis logarithmic, for ratios around 1, with at least three numbers on it however narrow it is."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    low, high = min(low, 0.8), max(high, 1.5)
    axes.set_ylim(low, high)
    digits = (1, 1.25, 1.5, 2, 3, 4, 5, 6, 8) if high < 5 * low else (1, 2, 5) if high < 50 * low else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    step = max(1, len(powers) // 5)
    places = [d * 10.0**p for p in powers if p % step == 0 for d in digits]
    axes.yaxis.set_major_locator(FixedLocator([p for p in places if low <= p <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    power = lambda v: rf"$10^{{{round(math.log10(v))}}}$×"
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×" if v < 1000 else power(v)))
    axes.set_ylabel(label)


def spelled(roles: Iterable[str]) -> str:
    """The roles' names in full, for a caption that is read without the paper: 'SCU: safety critical; ...'."""
    return "; ".join(f"{r}: {ROLE_NAMES[r]}" for r in roles if r in ROLE_NAMES)


def whiskers(estimates: Sequence[Estimate], scale: float = 1.0) -> list[list[float]]:
    """Lengths below and above each value, as `errorbar` wants them; 0 where there is no interval."""
    below = [0.0 if e.low is None else max(e.value - e.low, 0.0) * scale for e in estimates]
    above = [0.0 if e.high is None else max(e.high - e.value, 0.0) * scale for e in estimates]
    return [below, above]


def caption_of(figure: Figure) -> str:
    """The caption that is drawn below a figure, as one line of text: for who cannot see it, or only very small."""
    return " ".join(figure.get_supxlabel().split()).replace(r"\$", "$")


def save_png(figure: Figure, target: Path | IO[bytes]) -> None:
    """Writes a PNG at 150 dpi, without anything that changes from run to run."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(target, format="png", dpi=DPI, metadata={"Software": None})


def png(figure: Figure) -> bytes:
    """The same as bytes."""
    buffer = io.BytesIO()
    save_png(figure, buffer)
    return buffer.getvalue()


def save_still(figure: Figure, target: Path, form: str) -> None:
    """Writes a figure as 'svg' or 'pdf'; without a date, so that the same picture is the same file."""
    metadata = {"Date": None} if form == "svg" else {"CreationDate": None}
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "ssah-lens"}):
        figure.savefig(target, format=form, metadata=metadata)
