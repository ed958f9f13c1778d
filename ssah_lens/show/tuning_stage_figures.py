"""Pictures of fine-tuning: every method's refusals beside its loss, the trade-off of a freeze, the alignment budget."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssah_lens.results import BudgetResult, TransferResult, TunedArm, TuningResult
from ssah_lens.show.style import (
    BASELINE,
    INK,
    RANDOM,
    ROLE_COLOURS,
    legend_above,
    new_figure,
    percent_axis,
    spelled,
    styled,
    whiskers,
)
from ssah_lens.show.text import listed
from ssah_lens.stats import Estimate

MARKERS = {"steps": "o", "loss": "D"}
LABEL = 34
"""Characters after which the name of a line is broken."""
SAFEST, RANDOM_ONES = "freeze top ", "freeze random "


def tuning_figures(r: TuningResult) -> dict[str, Figure]:
    """All figures of stage `tuning`, by name."""
    out = {}
    for before in r.before:
        arms = [a for a in r.arms if a.data == before.data]
        out[f"tuning_{data_name(before.data)}"] = methods(before, arms)
        if any(a.method.startswith(SAFEST) for a in arms):
            out[f"tuning_tradeoff_{data_name(before.data)}"] = tradeoff(before, arms)
    return out


def data_name(data: str) -> str:
    return data.replace("-", "_").replace(" ", "_")


def _colour(method: str) -> str:
    if "random" in method:
        return RANDOM
    if method == "full":
        return INK
    return ROLE_COLOURS["SCU"] if method.startswith("freeze ") else ROLE_COLOURS["UCU"]


@styled
def methods(before: TunedArm, arms: Sequence[TunedArm]) -> Figure:
    """Refusals and validation loss after each way of fine-tuning on one data set; one point per seed."""
    names = list(dict.fromkeys(a.method for a in arms if not a.method.startswith((SAFEST, "freeze random 0"))))
    n = before.asked["plain"].refused.n
    figure = new_figure(
        1.9 + 0.42 * len(names),
        f"Fine-tuning on '{before.data}' data, one way per line",
        f"n = {n} harmful test prompts; one point per seed, whiskers: 95% interval over prompts. Circles: after as "
        "many steps as 'full'; diamonds: trained again, longer, to the validation loss of 'full' (white: not reached "
        "in twice the steps). Dashed: before fine-tuning. What has learned less than 'full' has less to forget.",
    )
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for y, name in enumerate(names):
        for arm in (a for a in arms if a.method == name):
            fill = _colour(name) if arm.reached else "white"
            style = {"fmt": MARKERS[arm.equal], "color": _colour(name), "markerfacecolor": fill, "markersize": 5.5}
            at = y + 0.12 * (arm.seed - np.mean([a.seed for a in arms])) + (0.22 if arm.equal == "loss" else -0.1)
            e = arm.asked["plain"].refused
            left.errorbar(e.value, at, xerr=whiskers([e]), capsize=2.5, elinewidth=1.1, clip_on=False, **style)
            right.errorbar(arm.validation_loss, at, **style)
    left.axvline(before.asked["plain"].refused.value, color=BASELINE, linestyle="--", linewidth=1.1)
    right.axvline(before.validation_loss, color=BASELINE, linestyle="--", linewidth=1.1)
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.4, -0.6)
    percent_axis(left, "harmful prompts refused", "x")
    right.set_xlabel("validation loss,\nnats per token")
    _grid_both(left, right)
    return figure


@styled
def tradeoff(before: TunedArm, arms: Sequence[TunedArm]) -> Figure:
    """Refusals and loss against the share of units that is held: the safest by score, and random ones."""
    figure = new_figure(
        5.2,
        f"How much must be held? Fine-tuning on '{before.data}' data",
        f"n = {before.asked['plain'].refused.n} harmful test prompts, mean over seeds; whiskers: 95% interval over "
        "prompts (of one seed). Dashed: before fine-tuning; dotted: nothing held. Equal steps.",
    )
    top, bottom = figure.subplots(2, sharex=True)
    full = [a for a in arms if a.method == "full"]
    for start, label, colour, marker in (
        (SAFEST, "safest units by score", ROLE_COLOURS["SCU"], "o"),
        (RANDOM_ONES, "random units", RANDOM, "D"),
    ):
        some = [a for a in arms if a.method.startswith(start) and a.equal == "steps"]
        shares = sorted({float(a.method.removeprefix(start)) for a in some})
        at = lambda share, some=some, start=start: [a for a in some if float(a.method.removeprefix(start)) == share]
        refused = [np.mean([a.asked["plain"].refused.value for a in at(s)]) for s in shares]
        spread = whiskers([at(s)[0].asked["plain"].refused for s in shares])
        top.errorbar(shares, refused, yerr=spread, marker=marker, color=colour, label=label, capsize=2.5)
        bottom.plot(shares, [np.mean([a.validation_loss for a in at(s)]) for s in shares], marker=marker, color=colour)
    for axes, unheld, end in (
        (top, before.asked["plain"].refused.value, np.mean([a.asked["plain"].refused.value for a in full])),
        (bottom, before.validation_loss, np.mean([a.validation_loss for a in full])),
    ):
        axes.axhline(unheld, color=BASELINE, linestyle="--", linewidth=1.1)
        axes.axhline(end, color=INK, linestyle=":", linewidth=1.1)
    percent_axis(top, "harmful refused")
    bottom.set_ylabel("validation loss,\nnats per token")
    bottom.set_xlabel("share of all units held")
    bottom.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    legend_above(top, *top.get_legend_handles_labels(), ncols=2, points=4)
    return figure


@styled
def budget(r: BudgetResult) -> Figure:
    """Safety reached and tax paid by aligning through all parameters, redundant units only, random units only."""
    names = list(dict.fromkeys(a.name for a in r.arms))
    share = {a.name: a.trained_share for a in r.arms}
    figure = new_figure(
        4.6,
        "Aligning the unaligned model through few parameters",
        f"n = {r.unaligned.harmful.refused.n} harmful test prompts; one point per seed, whiskers: 95% interval over "
        "prompts. Tax: rise of the loss on the unaligned model's own answers to ordinary instructions.",
    )
    top, bottom = figure.subplots(2, sharex=True)
    colours = dict(zip(names, (INK, ROLE_COLOURS["RU"], RANDOM), strict=False))
    for x, name in enumerate(names):
        arms = [a for a in r.arms if a.name == name]
        where = x + 0.1 * (np.arange(len(arms)) - (len(arms) - 1) / 2)
        refused = [a.after.harmful.refused for a in arms]
        style = {"fmt": "o", "color": colours[name], "capsize": 3}
        top.errorbar(where, [e.value for e in refused], yerr=whiskers(refused), clip_on=False, **style)
        bottom.errorbar(where, [a.tax for a in arms], **style)
    top.axhline(r.unaligned.harmful.refused.value, color=BASELINE, linestyle="--", linewidth=1.1)
    bottom.axhline(0, color=BASELINE, linestyle="--", linewidth=1.1)
    percent_axis(top, "harmful refused")
    top.set_title("Safety (dashed: unaligned)")
    bottom.set_title("Tax (dashed: none)")
    bottom.set_ylabel("nats per token")
    bottom.set_xticks(range(len(names)), [f"{n}\n({share[n]:.0%} of parameters)" for n in names])
    bottom.set_xlim(-0.6, len(names) - 0.4)
    return figure


@styled
def transfer(r: TransferResult) -> Figure:
    """How many safety units kept their role, beside the null, and whose parameters bring refusals back."""
    scored = {
        "null: another calibration sample": r.null.held.get("SCU"),
        "fine-tuned, refusals mixed in": r.safe.held.get("SCU"),
        "fine-tuned": r.tuned.held.get("SCU"),
    }
    held: dict[str, Estimate] = {k: v for k, v in scored.items() if v}
    refused = {n: e for n, e in r.refused.items()} | {f"put back: {x.units} ({x.n})": x.refused for x in r.restored}
    rows = [sum(1 + textwrap.fill(name, LABEL).count("\n") for name in names) for names in (held, refused)]
    told = [f"n = {next(iter(x.values())).n:,} {what}" for x, what in ((held, "SCU"), (refused, "prompts")) if x]
    figure = new_figure(
        2.6 + 0.27 * sum(rows),
        "Do safety units turn into others?",
        f"{r.n_units:,} units scored by {r.score}, roles cut at the sizes before; {listed(told)}. Null: the same model "
        "scored on another calibration sample. Dotted: chance. Below: the fine-tuned model with the parameters of "
        f"these units put back. Whiskers: 95% intervals. {spelled(['SCU'])}.",
    )
    top, bottom = figure.subplots(2, height_ratios=[max(n, 1) for n in rows])
    _dots(top, held, ROLE_COLOURS["SCU"], "share of units")
    top.set_title("SCU that kept their role")
    if "SCU" in r.tuned.chance:
        top.axvline(r.tuned.chance["SCU"], color=RANDOM, linestyle=":", linewidth=1.2)
    _dots(bottom, refused, INK, "share of prompts")
    bottom.set_title("Harmful prompts refused")
    return figure


def _dots(axes: Axes, values: dict[str, Estimate], colour: str, unit: str) -> None:
    """One line per name; a name of two lines takes the room of two."""
    names = [textwrap.fill(name, LABEL) for name in values]
    tall = np.array([1 + n.count("\n") for n in names], dtype=float)
    y = np.cumsum(tall) - tall / 2 - 0.5
    axes.errorbar([e.value for e in values.values()], y, xerr=whiskers(list(values.values())), fmt="o", color=colour,
                  capsize=3, clip_on=False)  # fmt: skip
    axes.set_yticks(y, names)
    axes.set_ylim(tall.sum() - 0.4, -0.6)
    percent_axis(axes, unit, "x")
    _grid_both(axes)


def _grid_both(*axes: Axes) -> None:
    for a in axes:
        a.grid(axis="x", visible=True)
