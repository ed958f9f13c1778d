"""Where units went: a Sankey diagram of roles before and after fine-tuning, and what each role held.

The units that stay complex (CU) are most of a model and tell nothing; drawn, they would squeeze all others to a hair.
They are left out, and the caption says how many they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from ssah_lens.errors import BadInput
from ssah_lens.results import RoleMoves, TransferReport
from ssah_lens.show.picture import Picture
from ssah_lens.show.style import (
    INK,
    RANDOM,
    ROLE_COLOURS,
    ROLE_NAMES,
    legend_above,
    new_figure,
    percent_axis,
    spelled,
    styled,
    whiskers,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

LEFT_OUT = ("CU", "CU")
BAR = 0.045
"""Width of a role's bar, as a share of the width of the diagram."""
GAP = 0.06
"""Between two bars, as a share of all units drawn."""
LINE = 0.034
"""Height of a written number, as a share of the diagram's."""
LEAST_TOLD = 0.015
"""Flows of this share of what is drawn, or more, have their number written on them."""


@dataclass(frozen=True)
class Flow:
    """Units of one role before that have one role after; `low` is where the ribbon begins on each side."""

    before: str
    after: str
    n: int
    low: tuple[float, float]


@dataclass(frozen=True)
class Bars:
    """The two columns of the diagram: role -> (where its bar begins, how many units), from the top down."""

    before: dict[str, tuple[float, int]]
    after: dict[str, tuple[float, int]]
    flows: tuple[Flow, ...]
    n: int

    @property
    def height(self) -> float:
        """Of the taller column, gaps included."""
        return max(start + n for side in (self.before, self.after) for start, n in side.values())


def picture(result: TransferReport) -> Picture:
    """Still: the diagram above, below what each role held beside chance and the null. Interactive: the diagram.

    Raises:
        BadInput: no unit to draw.
    """
    bars = lay_out(result)
    return Picture(transfer(result), lambda: _plotly(result, bars))


def lay_out(moves: RoleMoves) -> Bars:
    """Where every bar and ribbon goes; one unit is one step of the vertical axis.

    Raises:
        BadInput: no role but CU, so that nothing is left to draw.
    """
    roles = [r for r in ROLE_COLOURS if r in moves.counts]
    count = lambda b, a: 0 if (b, a) == LEFT_OUT else moves.counts[b].get(a, 0)
    n = sum(count(b, a) for b in roles for a in roles)
    if not n:
        raise BadInput("the units are all CU, before and after: there is no move to draw")
    column = lambda total: _stacked({r: total(r) for r in roles}, GAP * n)
    before = column(lambda b: sum(count(b, a) for a in roles))
    after = column(lambda a: sum(count(b, a) for b in roles))
    used = {0: {r: s for r, (s, _) in before.items()}, 1: {r: s for r, (s, _) in after.items()}}
    flows = []
    for b in before:
        for a in after:
            if size := count(b, a):
                flows.append(Flow(b, a, size, (used[0][b], used[1][a])))
                used[0][b] += size
                used[1][a] += size
    return Bars(before, after, tuple(flows), n)


def _stacked(sizes: dict[str, int], gap: float) -> dict[str, tuple[float, int]]:
    out, start = {}, 0.0
    for role, n in sizes.items():
        if n:
            out[role] = (start, n)
            start += n + gap
    return out


@styled
def transfer(result: TransferReport) -> Figure:
    """The Sankey diagram of all units that are not CU both times, and the share of each role that kept it."""
    bars = lay_out(result)
    stayed = result.counts.get("CU", {}).get("CU", 0)
    null = "" if result.null is None else " Diamonds: the same model before, scored on another calibration sample."
    figure = new_figure(
        8.2,
        "What became of each role's units",
        f"n = {result.n_units:,} units, scored by {result.score}; both times cut at the sizes of before. Above: "
        f"numbers of units; the {stayed:,} that are CU both times are left out. Below: whiskers are 95% intervals, "
        f"dashes what random roles of these sizes would hold.{null}",
    )
    top, below = figure.subplots(2, height_ratios=(3, 1.5))
    _diagram(top, bars)
    _held(below, result)
    return figure


def _diagram(axes: Axes, bars: Bars) -> None:
    axes.set_axis_off()
    axes.set_xlim(-0.2, 1.2)
    axes.set_ylim(bars.height * 1.01, -bars.height * 0.07)
    for flow in bars.flows:
        colour = ROLE_COLOURS[flow.before]
        axes.add_patch(PathPatch(_ribbon(flow), facecolor=colour, edgecolor="none", alpha=0.42))
    told = [f for f in bars.flows if f.n >= LEAST_TOLD * bars.n]
    # Beside the bar that the ribbon leaves, where ribbons do not cross yet.
    for flow, y in zip(told, _apart([f.low[0] + f.n / 2 for f in told], LINE * bars.height), strict=True):
        axes.text(BAR + 0.015, y, f"{flow.n:,}", va="center", fontsize=8.5)
    for x, side, align in ((0.0, bars.before, "right"), (1.0 - BAR, bars.after, "left")):
        for role, (start, n) in side.items():
            axes.add_patch(Rectangle((x, start), BAR, n, facecolor=ROLE_COLOURS[role], edgecolor="none"))
            edge = x - 0.012 if align == "right" else x + BAR + 0.012
            left_out = "\nthat move" if role == "CU" else ""
            axes.text(edge, start + n / 2, f"{role}\n{n:,}{left_out}", ha=align, va="center", fontsize=9.5)
    for x, align, words in ((0, "left", "before"), (1, "right", "after fine-tuning")):
        axes.text(x, -bars.height * 0.03, words, ha=align, va="bottom", fontweight="bold")


def _apart(places: Sequence[float], least: float) -> list[float]:
    """The same places in their order, moved on where one would stand on the one before."""
    out: list[float] = []
    for place in places:
        out.append(max(place, out[-1] + least) if out else place)
    return out


def _ribbon(flow: Flow) -> Path:
    """Between two bars: straight at both ends, as wide as units are many."""
    left, right, middle = BAR, 1 - BAR, 0.5
    (a, b), n = flow.low, flow.n
    points = [(left, a), (middle, a), (middle, b), (right, b), (right, b + n), (middle, b + n), (middle, a + n),
              (left, a + n), (left, a)]  # fmt: skip
    curve = [Path.CURVE4] * 3
    return Path(points, [Path.MOVETO, *curve, Path.LINETO, *curve, Path.CLOSEPOLY])


def _held(axes: Axes, result: TransferReport) -> None:
    roles = [r for r in ROLE_COLOURS if r in result.held]
    for x, role in enumerate(roles):
        held = result.held[role]
        axes.errorbar(x, held.value, yerr=whiskers([held]), fmt="o", color=ROLE_COLOURS[role], markersize=8,
                      elinewidth=1.4, capsize=3, clip_on=False, label="after fine-tuning")  # fmt: skip
        axes.plot([x - 0.25, x + 0.25], [result.chance[role]] * 2, "--", color=RANDOM, label="chance")
        if result.null is not None and role in result.null.held:
            again = result.null.held[role]
            axes.errorbar(x + 0.14, again.value, yerr=whiskers([again]), fmt="D", color=INK, markersize=5,
                          elinewidth=1.2, capsize=2.5, clip_on=False, label="not fine-tuned, scored again")  # fmt: skip
    axes.set_xticks(range(len(roles)), [f"{r}\n{ROLE_NAMES[r]}" for r in roles])
    axes.set_xlim(-0.5, len(roles) - 0.5)
    percent_axis(axes, "share held")
    axes.set_title("Units that kept their role")
    first = dict(reversed(list(zip(*reversed(axes.get_legend_handles_labels()), strict=True))))
    legend_above(axes, list(first.values()), list(first), ncols=3, points=20)


def _plotly(result: TransferReport, bars: Bars) -> go.Figure:
    import plotly.graph_objects as go

    from ssah_lens.show.patching_plotly import dressed

    nodes = [(side, role) for side, found in (("before", bars.before), ("after", bars.after)) for role in found]
    place = {node: i for i, node in enumerate(nodes)}
    told = [f"{f.n:,} units: {f.before} before, {f.after} after" for f in bars.flows]
    diagram = go.Sankey(
        arrangement="fixed",
        node={
            "label": [f"{role} {side}" for side, role in nodes],
            "color": [ROLE_COLOURS[role] for _, role in nodes],
            "x": [0.001 if side == "before" else 0.999 for side, _ in nodes],
            "y": [_middle(bars, side, role) for side, role in nodes],
            "pad": 18,
            "thickness": 22,
            "line": {"width": 0},
            "hovertemplate": "%{label}: %{value:,} units<extra></extra>",
        },
        link={
            "source": [place["before", f.before] for f in bars.flows],
            "target": [place["after", f.after] for f in bars.flows],
            "value": [f.n for f in bars.flows],
            "color": [_pale(ROLE_COLOURS[f.before]) for f in bars.flows],
            "customdata": told,
            "hovertemplate": "%{customdata}<extra></extra>",
        },
    )
    stayed = result.counts.get("CU", {}).get("CU", 0)
    words = f"n = {result.n_units:,} units, scored by {result.score}, cut at the sizes of before. The {stayed:,} units "
    words += f"that are CU both times are left out. Hover for numbers. {spelled(ROLE_COLOURS)}."
    return dressed(go.Figure(diagram), "What became of each role's units", words, 420, 20)


def _middle(bars: Bars, side: str, role: str) -> float:
    start, n = (bars.before if side == "before" else bars.after)[role]
    return float(np.clip((start + n / 2) / bars.height, 0.001, 0.999))


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.45)"
