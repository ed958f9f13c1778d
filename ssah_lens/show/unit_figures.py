"""Pictures of units: how many each role got and why, where they sit, and the two scores that placed them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from ssah_lens.results import UnitsResult
from ssah_lens.show.style import (
    BASELINE,
    INK,
    ROLE_COLOURS,
    ROLE_MARKERS,
    ROLE_NAMES,
    legend_above,
    new_figure,
    percent_axis,
    styled,
)
from ssah_lens.units import Kind, Role, UnitTable

KIND_NAMES = {Kind.MLP: "MLP neurons", Kind.HEAD: "attention heads"}
DRAWN_FROM_BACK = (Role.CU, Role.RU, Role.UCU, Role.SCU)
SPREAD = 10.0
"""Scores that reach this many times further than nine tenths of all units get an axis that is logarithmic outside."""


@styled
def size_choice(result: UnitsResult) -> Figure:
    """Refusals and answer loss of every candidate size on the validation split, the chosen size marked."""
    figure = new_figure(
        6.2,
        f"Choosing the size of each role ({result.validation} validation prompts)",
        "Each point: that share of the units of each kind, by rank, under mean ablation. Ring: the chosen size. "
        "Dashed line: the undamaged model.",
    )
    panels = figure.subplots(2, sharex=True)
    shares = sorted({c.share for s in result.sizes.values() for c in s.curve})
    for role, size in result.sizes.items():
        colour, marker = ROLE_COLOURS.get(role, INK), ROLE_MARKERS.get(role, "P")
        curve = sorted(size.curve, key=lambda c: c.share)
        label = f"{role}: {size.chosen * 100:.3g}% chosen"
        label += "" if size.reached else " (target not reached)"
        for axes, field in zip(panels, ("refused", "answer_loss"), strict=True):
            values = [getattr(c, field) for c in curve]
            axes.plot([c.share for c in curve], values, marker=marker, markersize=5, color=colour, label=label)
            chosen = [getattr(c, field) for c in curve if c.share == size.chosen]
            axes.plot([size.chosen] * len(chosen), chosen, "o", markersize=14, color=colour, markerfacecolor="none",
                      markeredgewidth=2, clip_on=False)  # fmt: skip
    for axes, base in zip(panels, (result.base_refused, result.base_answer_loss), strict=True):
        axes.axhline(base, color=BASELINE, linestyle="--", linewidth=1.1, zorder=1)
        axes.margins(y=0.12)
    percent_axis(panels[0], "share of prompts")
    panels[0].set_title("Harmful prompts refused")
    panels[1].set_title("Loss on the model's own harmless answers")
    panels[1].set_ylabel("nats per token")
    _share_axis(panels[1], shares)
    legend_above(panels[0], *panels[0].get_legend_handles_labels(), ncols=1, points=24)
    return figure


def _share_axis(axes: Axes, shares: list[float]) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("share of each kind's units ablated (log scale)")
    ticks: list[float] = []
    for share in shares:  # leave out those that would run into the one before
        if not ticks or share / ticks[-1] > 1.45:
            ticks.append(share)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v * 100:g}%"))
    axes.xaxis.set_minor_locator(NullLocator())


@styled
def units_by_layer(result: UnitsResult) -> Figure:
    """How many units of each role every layer holds."""
    roles = [r for r in ROLE_COLOURS if any(result.by_layer.get(r, ()))]
    figure = new_figure(
        1.3 + 1.45 * len(roles),
        "Where the units of each role sit",
        f"Neurons and heads together, n = {sum(map(sum, result.by_layer.values())):,} units. Each panel has a scale of "
        "its own: compare shapes, not heights.",
    )
    panels = figure.subplots(len(roles), sharex=True, squeeze=False)[:, 0]
    for axes, role in zip(panels, roles, strict=True):
        counts = np.array(result.by_layer[role])
        axes.bar(np.arange(counts.size), counts, width=0.82, color=ROLE_COLOURS[role])
        share = f", {result.roles[role].units:.1%} of all" if role in result.roles else ""
        axes.set_title(f"{role} ({ROLE_NAMES[role]}): {counts.sum():,} units{share}")
        axes.set_ylabel("units")
        axes.set_xlim(-0.7, counts.size - 0.3)
        axes.yaxis.get_major_locator().set_params(integer=True, nbins=4)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[-1].set_xlabel("layer (0 = first block)")
    return figure


@styled
def score_scatter(table: UnitTable) -> Figure:
    """Importance for safety against importance for utility, one point per unit, one panel per kind."""
    frame = table.frame()
    frame = frame[np.isfinite(frame["I_S"]) & np.isfinite(frame["I_U"])]
    kinds = [k for k in Kind if (frame["kind"] == k).any()]
    score = table.provenance.get("score", "score")
    redundant = "both near 0" if table.importance is None else "by its importance, a third number, not drawn"
    figure = new_figure(
        1.5 + 3.6 * len(kinds),
        "The two scores of every unit, and the role they gave it",
        f"Score: {score}. Units are ranked within their kind. n = {len(frame):,} units. SCU: much more for safety "
        f"than for utility; UCU: the reverse; RU: little for either ({redundant}); CU: the rest.",
    )
    panels = figure.subplots(len(kinds), squeeze=False)[:, 0]
    for axes, kind in zip(panels, kinds, strict=True):
        _cloud(axes, frame[frame["kind"] == kind])
        axes.set_title(f"{KIND_NAMES[kind]} (n = {(frame['kind'] == kind).sum():,})")
        axes.set_xlabel(
            _spread_axis(axes, frame.loc[frame["kind"] == kind, "I_U"], "x", "importance for utility, $I_U$")
        )
        axes.set_ylabel(
            _spread_axis(axes, frame.loc[frame["kind"] == kind, "I_S"], "y", "importance for safety, $I_S$")
        )
    return figure


def _cloud(axes: Axes, frame: pd.DataFrame) -> None:
    size = 7 if len(frame) > 2000 else 26
    for role in DRAWN_FROM_BACK:
        rows = frame[frame["role"] == role]
        if len(rows):
            axes.scatter(
                rows["I_U"], rows["I_S"], s=size, color=ROLE_COLOURS[role], marker=ROLE_MARKERS[role], linewidths=0,
                alpha=0.45 if role in (Role.CU, Role.RU) else 0.85, rasterized=True, label=f"{role} ({len(rows):,})",
            )  # fmt: skip
    axes.grid(True, axis="both")
    handles, labels = axes.get_legend_handles_labels()
    legend = axes.legend(
        handles[::-1],
        labels[::-1],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        markerscale=2.2 if size < 10 else 1.2,
        borderpad=0.2,
    )
    for handle in legend.legend_handles:
        handle.set_alpha(1)


def _spread_axis(axes: Axes, values: pd.Series, axis: str, label: str) -> str:
    """Makes the axis logarithmic outside the bulk where a few units reach very far; the label says so."""
    bulk = float(np.quantile(np.abs(values), 0.9))
    if bulk <= 0 or np.abs(values).max() < SPREAD * bulk:
        return label
    getattr(axes, f"set_{axis}scale")("symlog", linthresh=bulk)
    return f"{label} (log beyond ±{bulk:.2g})"
