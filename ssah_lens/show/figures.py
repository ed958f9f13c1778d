"""One function per picture: a labelled result in, a matplotlib Figure out.

Behaviour and training are drawn here, ablation in `ablation_figures.py`, units in `unit_figures.py`; all are offered
here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssah_lens.results import Arm, FreezeResult, Outcomes, RefusalResult, Training
from ssah_lens.show.ablation_figures import roles_ablated, score_controls
from ssah_lens.show.style import (
    BASELINE,
    INK,
    OUTCOME_COLOURS,
    OUTCOME_TEXT,
    RANDOM,
    ROLE_COLOURS,
    legend_above,
    new_figure,
    percent_axis,
    styled,
    whiskers,
)
from ssah_lens.show.unit_figures import score_scatter, size_choice, units_by_layer
from ssah_lens.stats import Estimate

__all__ = [
    "behaviour",
    "freezing",
    "roles_ablated",
    "score_controls",
    "score_scatter",
    "size_choice",
    "training",
    "units_by_layer",
]

ARM_NAMES = {
    "full": "nothing frozen",
    "freeze SCU + top CU": "SCU and top CU frozen",
    "freeze random": "random units frozen",
}
ARM_COLOURS = {"full": INK, "freeze SCU + top CU": ROLE_COLOURS["SCU"], "freeze random": RANDOM}
ARM_LINES = {"full": "-", "freeze SCU + top CU": "--", "freeze random": ":"}

MANY_STEPS = 30
"""From here on a run is drawn with its running mean: single batches hide where it goes."""
MEAN_OF = 9


@styled
def behaviour(result: RefusalResult) -> Figure:
    """Refused, fulfilled and incoherent shares of harmful prompts, their harmless twins and ordinary instructions."""
    models = {"aligned": result.aligned} | ({"unaligned": result.unaligned} if result.unaligned else {})
    groups = {"Harmful prompts": "harmful", "Harmless twins": "twins", "Ordinary instructions": "harmless"}
    groups = {k: v for k, v in groups.items() if getattr(result.aligned, v) is not None}
    caption = (
        "A harmless twin has the topic of a harmful prompt and asks for nothing harmful. "
        "Whiskers: 95% interval of the refused share."
    )
    figure = new_figure(1.9 + len(groups) * (0.5 + 0.36 * len(models)), "What the models do with a prompt", caption)
    axes = figure.subplots()
    position, ticks = 0.0, []
    for title, side in groups.items():
        known = {name: getattr(m, side) for name, m in models.items() if getattr(m, side) is not None}
        n = next(iter(known.values())).refused.n
        axes.text(0, position - 0.62, f"{title} (n = {n})", va="center", fontweight="bold")
        for name, outcomes in known.items():
            _stacked_bar(axes, position, outcomes)
            ticks.append((position, name))
            position += 0.9
        position += 0.75
    axes.set_yticks([t for t, _ in ticks], [name for _, name in ticks])
    axes.set_ylim(position - 1.05, -1.0)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    percent_axis(axes, "share of prompts", "x")
    axes.set_xlim(0, 1.0)
    handles, labels = axes.get_legend_handles_labels()
    first = dict(zip(labels, handles, strict=True))
    legend_above(axes, list(first.values()), list(first), ncols=3, points=4)
    return figure


def _stacked_bar(axes: Axes, position: float, outcomes: Outcomes) -> None:
    left = 0.0
    for name, colour in OUTCOME_COLOURS.items():
        share = getattr(outcomes, name).value
        hatch = "////" if name == "incoherent" else None
        axes.barh(
            position,
            share,
            left=left,
            height=0.78,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
            label=name,
        )
        if share >= 0.09:
            text = {"color": OUTCOME_TEXT[name], "fontsize": 9.5, "ha": "center", "va": "center"}
            axes.text(left + share / 2, position - 0.1, f"{share:.0%}", **text)
        left += share
    refused = outcomes.refused
    low_line = position + 0.26  # below the figures in the bar
    for width, colour in ((3.2, "white"), (1.4, "black")):
        axes.errorbar(
            refused.value, low_line, xerr=whiskers([refused]), color=colour, lw=width, capsize=3, capthick=width,
            clip_on=False,
        )  # fmt: skip


@styled
def freezing(result: FreezeResult) -> Figure:
    """Refusals before and after each way of fine-tuning, and the loss that each way reached."""
    names = list(dict.fromkeys(a.name for a in result.arms))
    seeds = max((sum(a.name == n for a in result.arms) for n in names), default=0)
    has_loss = any(a.training.validation_loss for a in result.arms)
    figure = new_figure(
        6.4 if has_loss else 3.9,
        "Safety and loss after benign fine-tuning",
        f"Bars: mean over seeds (n seeds = {seeds}); points: one seed, 95% interval over "
        f"{result.before.harmful.refused.n} harmful test prompts. Loss: answers held out from the same "
        "fine-tuning data; a method that learned less also has less to forget, so compare refusals at like losses.",
    )
    panels = figure.subplots(2 if has_loss else 1, sharex=True, squeeze=False)[:, 0]
    _bar(panels[0], 0, [result.before.harmful.refused], "#9AA5B1")
    for x, name in enumerate(names, start=1):
        _bar(panels[0], x, [a.after.harmful.refused for a in _of(result, name)], ARM_COLOURS.get(name, "#555555"))
    percent_axis(panels[0], "share of prompts")
    panels[0].set_title(f"Harmful prompts refused (n = {result.before.harmful.refused.n})")
    if has_loss:
        _validation_losses(panels[1], result, names)
    labels = ["before"] + [textwrap.fill(ARM_NAMES.get(n, n), 15) for n in names]
    panels[-1].set_xticks(range(len(labels)), labels)
    panels[-1].set_xlim(-0.6, len(labels) - 0.4)
    return figure


def _of(result: FreezeResult, name: str) -> list[Arm]:
    return [a for a in result.arms if a.name == name]


def _bar(axes: Axes, x: float, values: Sequence[Estimate], colour: str) -> None:
    height = float(np.mean([e.value for e in values]))
    axes.bar(x, height, width=0.62, color=colour, alpha=0.55, edgecolor=colour)
    where = x + 0.36 * (np.arange(len(values)) - (len(values) - 1) / 2) / max(len(values) - 1, 1)
    axes.errorbar(
        where, [e.value for e in values], yerr=whiskers(values), fmt="o", color="black", markersize=4, elinewidth=1.3,
        capsize=3, clip_on=False,
    )  # fmt: skip
    axes.annotate(
        f"{height:.0%}", (x - 0.3, 0), (3, 3), textcoords="offset points", fontsize=9.5, fontweight="bold",
        bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
    )  # fmt: skip


def _validation_losses(axes: Axes, result: FreezeResult, names: Sequence[str]) -> None:
    before = [a.training.validation_loss[0] for a in result.arms if a.training.validation_loss]
    axes.axhline(float(np.mean(before)), color=BASELINE, linestyle="--", linewidth=1.1)
    axes.plot(0, float(np.mean(before)), "o", color="#5F6B78", markersize=7)
    for x, name in enumerate(names, start=1):
        losses = [a.training.validation_loss[1] for a in _of(result, name) if a.training.validation_loss]
        where = x + 0.36 * (np.arange(len(losses)) - (len(losses) - 1) / 2) / max(len(losses) - 1, 1)
        axes.plot(where, losses, "o", color=ARM_COLOURS.get(name, "#555555"), markersize=7)
    axes.margins(y=0.2)
    axes.set_title("Validation loss (lower = learned more); dashed: before")
    axes.set_ylabel("nats per token")


@styled
def training(runs: Mapping[str, Training], title: str = "Training loss") -> Figure:
    """Training loss per step of each run, with the validation loss before and after where it was measured.

    Args:
        runs: name -> run. Names that begin with an arm's ('full, seed 0') share its look and one entry in the legend.
        title: above the figure.
    """
    validated = any(t.validation_loss for t in runs.values())
    examples = ", ".join(sorted({str(t.examples) for t in runs.values()}))
    note = "Loss of each step's batch, one line per run."
    if any(len(t.losses) >= MANY_STEPS for t in runs.values()):
        note += f" Strong lines: running mean of {MEAN_OF} steps (batches differ in what they hold)."
    note += " Squares: validation loss before and after." if validated else ""
    figure = new_figure(3.5, title, f"n = {examples} training examples. {note}")
    axes, seen = figure.subplots(), set()
    for name, run in runs.items():
        arm = next((a for a in ARM_NAMES if name.startswith(a)), None)
        colour, line = ARM_COLOURS.get(arm or "", ROLE_COLOURS["UCU"]), ARM_LINES.get(arm or "", "-")
        label = ARM_NAMES.get(arm or "", name)
        label = "_" + label if label in seen else label  # matplotlib leaves a leading underscore out of the legend
        seen.add(label)
        steps = np.arange(1, len(run.losses) + 1)
        if smooth := len(run.losses) >= MANY_STEPS:
            axes.plot(steps, run.losses, color=colour, linewidth=0.8, alpha=0.4)
        shown = _running_mean(run.losses) if smooth else run.losses
        axes.plot(steps, shown, color=colour, linestyle=line, label=label)
        if run.validation_loss:
            ends = [0, len(run.losses) + 1]
            axes.plot(ends, run.validation_loss, "s", color=colour, markersize=5.5, markerfacecolor="white")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("nats per token")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(runs) > 1:
        legend_above(axes, *axes.get_legend_handles_labels(), ncols=2, points=5)
    return figure


def _running_mean(losses: Sequence[float]) -> list[float]:
    """Over `MEAN_OF` neighbours, fewer at the ends."""
    half = MEAN_OF // 2
    return [float(np.mean(losses[max(i - half, 0) : i + half + 1])) for i in range(len(losses))]
