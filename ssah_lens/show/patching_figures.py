"""Pictures of patching: layer x position with the prompt's tokens on the axis, layer x head, the neurons of layers.

Red moves towards the clean prompt's choice, blue away from it, white changes nothing (a scale that is told apart in
every common form of colour blindness). Each picture comes still (matplotlib) and interactive (plotly).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssah_lens.errors import BadInput
from ssah_lens.results import PatchMap
from ssah_lens.show.patching_plotly import label, plotly_grid, plotly_neurons
from ssah_lens.show.picture import Picture
from ssah_lens.show.style import BASELINE, INK, ROLE_COLOURS, new_figure, styled
from ssah_lens.show.text import interval, listed
from ssah_lens.show.tokens import drawable

COLOURS = "RdBu_r"
MISSING = "#DDDDDD"
SITES = {
    "resid": "the residual stream before each block",
    "attn": "each attention output",
    "mlp": "each MLP output",
    "head": "each attention head",
    "neuron": "each MLP neuron",
}
LABEL_CHARACTERS = 17
DIFFERS = " |"
"""Between the two tokens of a place where the prompts of a pair differ."""
MAX_LABELS = 60
"""More tokens than this on an axis: every second, third... is written."""
TOLD = 5
"""Strongest cells of a head grid, and neurons, whose value is written beside them."""
MAX_NUMBERS = 20
"""The same for heads."""
STRONGEST_ROWS = 24
"""Units by position: this many rows, the strongest units."""
SMALLEST_RANGE = 0.02
"""A map of nothing but rounding error stays white."""


@dataclass(frozen=True)
class Grid:
    """A PatchMap as a table to draw.

    Attributes:
        values, low, high: effect and its interval; NaN where there is none.
        rows, columns: labels.
        row_title, column_title: of the axes.
        left_out: columns at the left that patching cannot change, and that are not drawn.
        baseline: effect of changing nothing.
    """

    values: Float[np.ndarray, "row column"]
    low: Float[np.ndarray, "row column"] | None
    high: Float[np.ndarray, "row column"] | None
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_title: str
    column_title: str
    left_out: int
    baseline: float

    @property
    def reach(self) -> float:
        """Largest change of any cell: the colour scale runs this far to both sides of `baseline`."""
        changes = np.abs(self.values[np.isfinite(self.values)] - self.baseline)
        return max(float(changes.max(initial=0.0)), SMALLEST_RANGE)

    @property
    def axis_title(self) -> str:
        """Says what stands on an axis of tokens where it is not one token."""
        if self.column_title != "token":
            return self.column_title
        if any(DIFFERS in c for c in self.columns):
            return "token (two where the prompts differ: clean | corrupted)"
        if any(c == str(i - len(self.columns)) for i, c in enumerate(self.columns)):
            return "token, or its place from the end where the pairs have different ones"
        return "token"


def short_label(label: str, shown: Callable[[str, int], str]) -> str:
    """A label for an axis; of two tokens, each is cut by itself, so that the second is never the one that is lost."""
    parts = label.split(DIFFERS, 1)
    if not all(p.strip(" ") for p in parts):  # a token that is itself a bar
        parts = [label]
    return " | ".join(shown(p.strip(" ") or p, LABEL_CHARACTERS - 3 * (len(parts) - 1)) for p in parts)


def picture(found: PatchMap) -> Picture:
    """The picture that fits the axes of a map.

    Raises:
        BadInput: axes that no picture fits, labels that do not fit the values.
    """
    if found.site == "neuron" and found.axes == ("layer", "unit"):
        return Picture(neurons(found), lambda: plotly_neurons(found, array(found.values), title(found), caption(found)))
    cells = grid(found)
    words = title(found), caption(found, cells.left_out)
    told = TOLD if found.axes[-1] == "unit" else 0
    ticks = [short_label(c, label) for c in cells.columns]
    return Picture(_drawn(cells, *words, told), lambda: plotly_grid(cells, ticks, *words))


def grid(found: PatchMap) -> Grid:
    """Layers by positions, layers by heads, or the strongest units by positions."""
    values = array(found.values)
    shape = tuple(len(found.labels.get(a, ())) for a in found.axes)
    if values.shape != shape:
        raise BadInput(f"a map of shape {values.shape} has labels for {shape} ({', '.join(found.axes)})")
    if not np.isfinite(values).any():
        raise BadInput("no cell of the map is finite: there is nothing to draw")
    low, high = (None if v is None else array(v) for v in (found.low, found.high))
    baseline = 1.0 if found.noising else 0.0
    if found.axes == ("layer", "unit"):
        kind = "neuron" if found.site == "neuron" else "head"
        return Grid(values, low, high, found.labels["layer"], found.labels["unit"], "layer", kind, 0, baseline)
    if found.axes == ("layer", "pos"):
        rows = found.labels["layer"]
    elif found.axes == ("layer", "unit", "pos"):
        flat = lambda x: x.reshape(-1, x.shape[-1])
        values = flat(values)
        strength = np.nanmax(np.abs(np.where(np.isnan(values), baseline, values) - baseline), axis=1)
        order = np.sort(np.argsort(-strength, kind="stable")[:STRONGEST_ROWS])
        names = [f"{a}.{b}" for a in found.labels["layer"] for b in found.labels["unit"]]
        rows = tuple(names[i] for i in order)
        values = values[order]
        low, high = (None if x is None else flat(x)[order] for x in (low, high))
    else:
        raise BadInput(f"no picture for axes {found.axes}: allowed are layer and pos, layer and unit, or all three")
    changed = ((values != baseline) & ~np.isnan(values)).any(0)
    first = int(np.flatnonzero(changed).min(initial=values.shape[1] - 1))
    low, high = (None if x is None else x[:, first:] for x in (low, high))
    title_ = "layer" if len(found.axes) == 2 else f"layer.{found.site} (the {len(rows)} strongest)"
    return Grid(values[:, first:], low, high, rows, found.labels["pos"][first:], title_,
                "token", first, baseline)  # fmt: skip


def heatmap(found: PatchMap) -> Figure:
    """Layer by position (or by head): how far each cell moves the choice."""
    return picture(found).figure


@styled
def neurons(found: PatchMap) -> Figure:
    """Effect of every neuron of each layer, the strongest named."""
    with matplotlib.rc_context({"text.parse_math": False}):
        values = array(found.values)
        figure = new_figure(4.2, title(found), caption(found))
        axes = figure.subplots()
        layers, baseline = found.labels["layer"], 1.0 if found.noising else 0.0
        one = len(layers) == 1
        x: np.ndarray = np.arange(values.size) if one else np.repeat(np.arange(len(layers)), values.shape[1])
        if not one:
            x = x + np.linspace(-0.36, 0.36, values.shape[1])[np.tile(np.arange(values.shape[1]), len(layers))]
        axes.axhline(baseline, color=BASELINE, linewidth=0.9, zorder=1)
        axes.scatter(x, values.ravel(), s=9, color=ROLE_COLOURS["UCU"], alpha=0.55, linewidths=0, rasterized=True)
        for i in sorted(np.argsort(-np.abs(values.ravel() - baseline), kind="stable")[:TOLD], key=lambda i: x[i]):
            layer, unit = np.unravel_index(i, values.shape)
            name = found.labels["unit"][unit] if one else f"{layers[layer]}.{found.labels['unit'][unit]}"
            _name(axes, name, x[i], values.ravel()[i], x, values)
        axes.margins(y=0.1)
        axes.set_ylabel("effect of one neuron")
        if one:
            axes.set_xlabel(f"neuron of layer {layers[0]}")
        else:
            step = int(np.ceil(len(layers) / 30))
            axes.set_xticks(range(0, len(layers), step), layers[::step])
            axes.set_xlabel("layer (neurons side by side)")
        return figure


def _name(axes: Axes, name: str, x: float, y: float, all_x: np.ndarray, all_y: np.ndarray) -> None:
    """Beside its point, on the side where fewer of the far points are."""
    near = np.abs(all_y.ravel() - y) < 0.05 * np.ptp(all_y)
    crowd = lambda side: int((near & (side > 0) & (side < 0.1 * np.ptp(all_x))).sum())
    left = crowd(all_x - x) > crowd(x - all_x) or x > all_x.min() + 0.9 * np.ptp(all_x)
    axes.annotate(name, (x, y), (-5 if left else 5, 0), textcoords="offset points", fontsize=8.5, va="center",
                  ha="right" if left else "left")  # fmt: skip


def title(found: PatchMap) -> str:
    """What was patched where, and by which approximation if by one."""
    how = "" if found.method == "exact" else f", guessed by {found.method}"
    return f"Patching {SITES.get(found.site, found.site)}{how}"


def caption(found: PatchMap, left_out: int = 0) -> str:
    """How to read the picture, with n."""
    pairs = "1 pair of prompts" if found.n == 1 else f"{found.n} pairs of prompts"
    quoted = lambda tokens: listed([f"'{drawable(t, 14)}'" for t in tokens[:4]] + ["others"] * (len(tokens) > 4))
    out = "0: as on the corrupted prompt (by habit the harmless twin); 1: as on the clean one (the refused one). "
    out += f"Each activation is replaced by {found.estimand}. "
    out += f"Metric: {found.metric} ({quoted(found.refusing)} against {quoted(found.fulfilling)}), "
    out += f"{interval(found.clean)} clean, {interval(found.corrupted)} corrupted. n = {pairs}."
    if left_out:
        out += f" The first {left_out} positions, where the prompts do not differ yet, are left out: nothing to change."
    return out


def array(values: list | np.ndarray) -> Float[np.ndarray, "*axes"]:
    """Nested lists with None, as an array with NaN."""
    return np.array(values, dtype=float)


@styled
def _drawn(cells: Grid, heading: str, words: str, told: int) -> Figure:
    with matplotlib.rc_context({"text.parse_math": False}):
        n_rows = len(cells.rows)
        figure = new_figure(2.7 + 0.145 * max(n_rows, 8), heading, words)
        axes = figure.subplots()
        colours = matplotlib.colormaps[COLOURS].with_extremes(bad=MISSING)
        image = axes.imshow(
            np.ma.masked_invalid(cells.values), cmap=colours, aspect="auto", interpolation="nearest",
            vmin=cells.baseline - cells.reach, vmax=cells.baseline + cells.reach,
        )  # fmt: skip
        _ticks(axes, cells)
        axes.grid(False)
        for place in _strongest(cells, told):
            value = cells.values[place]
            ink = "white" if abs(value - cells.baseline) > 0.6 * cells.reach else INK
            axes.text(place[1], place[0], f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
        ends = np.linspace(image.norm.vmin, image.norm.vmax, 5)  # its ends are told: small effects are vivid too
        bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05, ticks=ends, format="%.2f")
        bar.set_label("effect (0 corrupted, 1 clean)")
        bar.outline.set_visible(False)
        return figure


def _strongest(cells: Grid, n: int) -> list[tuple[int, int]]:
    """The cells whose value is written in them; none where there is no room."""
    change = np.abs(np.where(np.isnan(cells.values), cells.baseline, cells.values) - cells.baseline)
    order = np.argsort(-change, axis=None, kind="stable")[: n if len(cells.columns) <= MAX_NUMBERS else 0]
    cells_of = zip(order, *np.unravel_index(order, change.shape), strict=True)
    return [(int(row), int(column)) for i, row, column in cells_of if change.ravel()[i] > 0]


def _ticks(axes: Axes, cells: Grid) -> None:
    n_rows, n_columns = cells.values.shape
    words = cells.column_title == "token"
    every = int(np.ceil(n_columns / (MAX_LABELS if words else MAX_NUMBERS)))
    labels = [short_label(c, drawable) for c in cells.columns[::every]]
    size = 8 if n_columns <= 40 else 6.5
    axes.set_xticks(range(0, n_columns, every), labels, rotation=90 if words else 0, fontsize=size if words else 8.5)
    step = int(np.ceil(n_rows / 40))
    axes.set_yticks(range(0, n_rows, step), [drawable(r, 12) for r in cells.rows[::step]], fontsize=8)
    axes.set_xlabel(cells.axis_title)
    axes.set_ylabel(cells.row_title)
    axes.tick_params(length=2)
    axes.get_xticklabels(), axes.get_yticklabels()  # made here, where '$' is not read as mathematics
