"""Patching maps with hover and zoom. Plotly reads some HTML in its labels, so every token is escaped."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ssah_lens.results import PatchMap
from ssah_lens.show.style import INK, ROLE_COLOURS
from ssah_lens.show.tokens import visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ssah_lens.show.patching_figures import Grid

AXIS_CHARACTERS = 17
HOVER_CHARACTERS = 80
FONT = {"family": "DejaVu Sans, Arial, sans-serif", "size": 12, "color": INK}


def plotly_grid(cells: Grid, ticks: Sequence[str], heading: str, words: str) -> go.Figure:
    """A heatmap; hover tells layer, token, effect and interval.

    Args:
        cells: what to draw.
        ticks: what stands below each column, escaped.
        heading, words: title and caption.
    """
    import plotly.graph_objects as go

    n_rows, n_columns = cells.values.shape
    told = np.empty(cells.values.shape, dtype=object)
    for r in range(n_rows):
        for c in range(n_columns):
            told[r, c] = _told(cells, r, c)
    figure = go.Figure(
        go.Heatmap(
            z=cells.values,
            x=list(range(n_columns)),
            y=list(range(n_rows)),
            text=told,
            hovertemplate="%{text}<extra></extra>",
            colorscale="RdBu",
            reversescale=True,
            zmin=cells.baseline - cells.reach,
            zmax=cells.baseline + cells.reach,
            colorbar={"title": {"text": "effect", "side": "top"}, "thickness": 14},
            xgap=0.5,
            ygap=0.5,
        )
    )
    turned = -90 if cells.column_title == "token" else 0
    figure.update_xaxes(
        tickvals=list(range(n_columns)), ticktext=list(ticks), tickangle=turned,
        title="<br>".join(textwrap.wrap(cells.axis_title, 36)), showgrid=False, zeroline=False,
    )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(n_rows)), ticktext=[label(r, AXIS_CHARACTERS) for r in cells.rows], autorange="reversed",
        title=cells.row_title, showgrid=False, zeroline=False,
    )  # fmt: skip
    return dressed(figure, heading, words, 300 + 16 * max(n_rows, 10))


def plotly_neurons(found: PatchMap, values: Float[np.ndarray, "layer unit"], heading: str, words: str) -> go.Figure:
    """One point per neuron; hover tells which.

    Args:
        found: the map.
        values: its effects.
        heading, words: title and caption.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, layer in enumerate(found.labels["layer"]):
        names = [f"layer {layer}, neuron {u}<br>effect {v:.3f}" for u, v in enumerate(values[i])]
        figure.add_scattergl(
            x=np.arange(values.shape[1]), y=values[i], mode="markers", text=names, name=f"layer {layer}",
            hovertemplate="%{text}<extra></extra>", marker={"size": 5, "opacity": 0.7},
        )  # fmt: skip
    if len(found.labels["layer"]) == 1:
        figure.update_traces(marker_color=ROLE_COLOURS["UCU"])
    figure.update_xaxes(title="neuron", zeroline=False)
    figure.update_yaxes(title="effect of one neuron")
    return dressed(figure, heading, words, 430, 60)


def label(token: str, limit: int) -> str:
    """A token as plotly shows it, character by character."""
    return escape(visible(token, limit))


def _told(cells: Grid, row: int, column: int) -> str:
    value = cells.values[row, column]
    effect = "no such position" if np.isnan(value) else f"effect {value:.3f}"
    if cells.low is not None and cells.high is not None and not np.isnan(value):
        effect += f" [{cells.low[row, column]:.3f}, {cells.high[row, column]:.3f}]"
    place = f" (position {column + cells.left_out})" if cells.column_title == "token" else ""
    what = label(cells.columns[column], HOVER_CHARACTERS)
    return (
        f"{cells.row_title.split(' ')[0]} {escape(cells.rows[row])}<br>{cells.column_title} {what}{place}<br>{effect}"
    )


def dressed(figure: go.Figure, heading: str, words: str, height: int, below: int = 150) -> go.Figure:
    """The shared look: title, then words, then `height` pixels of picture, `below` of them for what is on the axis.

    Title and words are kept in `layout.meta` too: a page of its own writes them as text that wraps (`Picture.save`).
    """
    lines = [escape(line) for line in textwrap.wrap(words, 130)]
    above = 60 + 16 * len(lines)
    figure.update_layout(
        template="plotly_white",
        font=FONT,
        height=height + above,
        margin={"l": 60, "r": 20, "t": above, "b": below},
        meta={"heading": heading, "words": words},
        title={"text": f"<b>{escape(heading)}</b>", "x": 0.01, "xanchor": "left", "font": {"size": 16},
               "yref": "container", "y": 1, "yanchor": "top", "pad": {"t": 14}},
    )  # fmt: skip
    figure.add_annotation(
        text="<br>".join(lines), xref="paper", yref="paper", x=0, y=1, yshift=10, xanchor="left", yanchor="bottom",
        align="left", showarrow=False, font={"size": 11, "color": "#444444"},
    )  # fmt: skip
    return figure
