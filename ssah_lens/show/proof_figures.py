"""Pictures of the proof: which score is best, rising doses, sufficiency, stability, and units by kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from ssah_lens.results import (
    AblateResult,
    Behaviour,
    Faithfulness,
    ScoreComparison,
    StabilityResult,
    Transplant,
)
from ssah_lens.show.reference import PAPER_SCU
from ssah_lens.show.style import (
    BASELINE,
    INK,
    OUTCOME_COLOURS,
    RANDOM,
    ROLE_COLOURS,
    ROLE_MARKERS,
    legend_above,
    new_figure,
    percent_axis,
    ratio_axis,
    spelled,
    styled,
    whiskers,
)
from ssah_lens.show.words import compared
from ssah_lens.units import Kind, Role, UnitTable

KIND_TITLES = {Kind.MLP: "MLP neurons", Kind.HEAD: "attention heads"}
COMPARED = ROLE_COLOURS["SCU"]


@styled
def dose_response(result: AblateResult) -> Figure:
    """Outcomes and utility without a rising share of the units that rank highest as SCU, beside random twins."""
    n = result.baseline.harmful.refused.n
    figure = new_figure(
        8.9,
        f"Without a rising share of units ({n} harmful test prompts)",
        "Units in the order of importance for safety minus importance for utility, within their kind; mean ablation. "
        "Grey diamonds: random sets with as many units in every layer and kind. Dashed line: the undamaged model. "
        "Stars: what the paper's 7-8B models still refuse without their SCU (its judge, its prompts; no control). "
        f"Whiskers: 95% intervals. Perplexity: {result.baseline.utility.answer_perplexity.n} ordinary instructions, "
        f"above 1 = worse. {spelled(['SCU'])}.",
    )
    panels = figure.subplots(3, sharex=True)
    shares = [d.size.units for d in result.doses]
    _curve(panels[0], result, lambda b: b.harmful.refused, COMPARED, "SCU ranking")
    panels[0].plot([s for s, _ in PAPER_SCU], [kept for _, kept in PAPER_SCU], "*", color=BASELINE, markersize=9,
                   label="the paper's SCU", clip_on=False)  # fmt: skip
    panels[0].set_title("Harmful prompts refused")
    percent_axis(panels[0], "share of prompts")
    for name in ("fulfilled", "incoherent"):
        marker = {"fulfilled": "o", "incoherent": "X"}[name]
        colour = INK if name == "incoherent" else OUTCOME_COLOURS[name]
        values = [getattr(d.behaviour.harmful, name) for d in result.doses]
        panels[1].errorbar(shares, [v.value for v in values], yerr=whiskers(values), marker=marker, color=colour,
                           markersize=6, elinewidth=1.2, capsize=2.5, clip_on=False, label=name)  # fmt: skip
    panels[1].set_title("What becomes of the harmful prompts")
    percent_axis(panels[1], "share of prompts")
    loss = lambda b: _ratio(b, result.baseline)
    panels[2].plot(shares, [loss(d.behaviour) for d in result.doses], marker="o", color=COMPARED, markersize=6)
    for d in result.doses:
        _diamonds(panels[2], d.size.units, [loss(c) for c in d.controls])
    panels[2].axhline(1, color=BASELINE, linestyle="--", linewidth=1.1, zorder=1)
    ratio_axis(panels[2], "ratio (log scale)")
    panels[2].set_title("Perplexity of harmless answers, relative to the undamaged model")
    _share_axis(panels[2], shares, "share of all units ablated (log scale)")
    for axes in panels[:2]:
        legend_above(axes, *axes.get_legend_handles_labels(), ncols=4, points=22)
    return figure


def _curve(axes: Axes, result: AblateResult, value, colour: str, label: str) -> None:
    shares = [d.size.units for d in result.doses]
    values = [value(d.behaviour) for d in result.doses]
    axes.errorbar(shares, [v.value for v in values], yerr=whiskers(values), marker="o", color=colour, markersize=6,
                  elinewidth=1.2, capsize=2.5, clip_on=False, label=label)  # fmt: skip
    for i, d in enumerate(result.doses):
        _diamonds(axes, d.size.units, [value(c).value for c in d.controls], "random sets" if i == 0 else None)
    axes.axhline(value(result.baseline).value, color=BASELINE, linestyle="--", linewidth=1.1, zorder=1)


def _diamonds(axes: Axes, x: float, values: Sequence[float], label: str | None = None) -> None:
    axes.plot([x] * len(values), values, "D", color=RANDOM, markersize=5, clip_on=False, label=label, linestyle="none")


def _ratio(b: Behaviour, base: Behaviour) -> float:
    return b.utility.answer_perplexity.value / base.utility.answer_perplexity.value


def _share_axis(axes: Axes, shares: Sequence[float], label: str) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_xticks(list(shares))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v * 100:.3g}%"))
    axes.xaxis.set_minor_locator(NullLocator())


@styled
def scores_compared(result: ScoreComparison) -> Figure:
    """Every score: refusal lost at equal utility lost, agreement with the exact effect, cost."""
    lines = sorted(result.scores, key=lambda s: (s.refusal_lost, s.score_lost))
    n = result.baseline.harmful.refused.n
    figure = new_figure(
        1.8 + 0.95 * len(lines),
        f"Which score is best? ({n} harmful validation prompts)",
        f"Top: refusals lost without a score's highest units, at most {lines[0].doses[-1].share:.1%} of each kind, "
        f"while the loss on harmless answers rises by at most {result.budget:g} nats per token. Middle: neurons, "
        f"against the exact effect ({result.estimand}; {result.exact_prompts} prompts a side). Bottom: time of the "
        "score alone.",
    )
    panels = figure.subplots(3, sharey=True)
    y = np.arange(len(lines))
    colours = [RANDOM if s.name == "random" else COMPARED if s.name == result.best else "#0072B2" for s in lines]
    panels[0].barh(y, [s.refusal_lost for s in lines], color=colours, height=0.62)
    percent_axis(panels[0], "refusals lost, share of prompts", axis="x")
    for i, s in enumerate(lines):
        told = f"{s.refusal_lost:.0%}, {s.score_lost:.1f} nats"
        panels[0].text(s.refusal_lost + 0.01, i, told, va="center", fontsize=8.5)
    for marker, values, label in (
        ("o", [_spearman(s) for s in lines], "Spearman"),
        ("X", [s.safety["mlp"].overlap if "mlp" in s.safety else np.nan for s in lines], "overlap of the top 1%"),
    ):
        panels[1].plot(values, y, marker, color=INK if marker == "o" else COMPARED, label=label, markersize=7)
    panels[1].axvline(0, color=BASELINE, linewidth=1)
    panels[1].set_xlim(-1.05, 1.05)
    panels[1].set_xlabel("agreement of the importance for safety with the exact effect")
    legend_above(panels[1], *panels[1].get_legend_handles_labels(), ncols=2, points=4)
    panels[2].barh(y, [max(s.seconds, 0.1) for s in lines], color=colours, height=0.62)
    panels[2].set_xscale("log")
    panels[2].set_xlabel("seconds (log scale)")
    panels[2].xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    for axes in panels:
        axes.set_yticks(y, [s.name for s in lines])
        axes.grid(True, axis="x")
    return figure


def _spearman(s) -> float:
    found = s.safety.get("mlp")
    return np.nan if found is None or found.spearman is None else found.spearman


@styled
def transplants(found: Sequence[Transplant]) -> Figure:
    """Does the unaligned model begin to refuse with the aligned one's activations of a set of units?"""
    figure = new_figure(
        1.9 + 0.42 * len(found),
        f"The unaligned model with the aligned one's units ({found[0].harmful.refused.n} harmful test prompts)",
        "At every token the units of the set are what they are in the aligned model on the same text; all else is the "
        f"unaligned model's own. Ordinary instructions: n = {found[0].harmless.refused.n}. Whiskers: 95% intervals.",
    )
    axes = figure.subplots()
    y = np.arange(len(found))[::-1]
    for shift, side, marker, colour in ((0.1, "harmful", "o", COMPARED), (-0.1, "harmless", "s", "#0072B2")):
        rates = [getattr(t, side).refused for t in found]
        label = {"harmful": "harmful prompts", "harmless": "ordinary instructions"}[side]
        axes.errorbar([r.value for r in rates], y + shift, xerr=whiskers(rates), fmt=marker, color=colour, markersize=7,
                      elinewidth=1.3, capsize=2.5, clip_on=False, label=label)  # fmt: skip
    axes.set_yticks(y, [f"{t.name} ({t.n:,})" for t in found])
    axes.set_ylim(-0.6, len(found) - 0.4)
    percent_axis(axes, "refused, share of prompts", axis="x")
    axes.grid(True, axis="x")
    legend_above(axes, *axes.get_legend_handles_labels(), ncols=2, points=4)
    return figure


@styled
def faithfulness(curves: Sequence[Faithfulness]) -> Figure:
    """How much of the choice is left when only the highest-ranked units are kept."""
    figure = new_figure(
        4.2,
        "Keeping only the highest-ranked units",
        "All other units are mean-ablated. 1: the whole model's difference of refusal score between "
        f"{compared(curves[0])}; 0: that of no unit. In the legend: area under the curve over the share kept (not its "
        "log).",
    )
    axes = figure.subplots()
    shares = [s for s in curves[0].shares if s > 0]
    for i, c in enumerate(curves):
        look = {"marker": "D", "color": RANDOM}
        if not c.name.startswith("random"):
            look = {"marker": "os"[i % 2], "color": (COMPARED, "#0072B2")[i % 2]}
        values = [v for s, v in zip(c.shares, c.values, strict=True) if s > 0]
        axes.plot(shares, values, markersize=5, label=f"{c.name}: {c.area:.2f}", **look)
    for level in (0, 1):
        axes.axhline(level, color=BASELINE, linestyle="--", linewidth=1, zorder=1)
    axes.set_ylabel("faithfulness")
    _share_axis(axes, shares, "share of each kind's units kept (log scale)")
    axes.tick_params(axis="x", labelsize=8.5)
    legend_above(axes, *axes.get_legend_handles_labels(), ncols=2, points=4)
    return figure


@styled
def stability(result: StabilityResult) -> Figure:
    """How many units of each role keep it with other calibration data, beside chance."""
    names = list(result.compared)
    figure = new_figure(
        1.9 + 0.4 * len(names),
        f"Would other calibration data give the same roles? ({result.score})",
        "Share of a role's units that keep it when the score is computed again and cut at the same sizes. Vertical "
        f"lines: what random roles of those sizes would hold. Whiskers: 95% intervals. {_role_sizes(result)}.",
    )
    axes = figure.subplots()
    y = np.arange(len(names))[::-1]
    roles = [r for r in ("SCU", "UCU", "RU") if all(r in m.held for m in result.compared.values())]
    for i, role in enumerate(roles):
        at, rates = zip(
            *((k + 0.18 * (1 - i), result.compared[n].held[role]) for k, n in zip(y, names, strict=True)), strict=True
        )
        look = {"fmt": ROLE_MARKERS[role], "color": ROLE_COLOURS[role], "label": role}
        values = [e.value for e in rates]
        axes.errorbar(values, at, xerr=whiskers(rates), markersize=6, elinewidth=1.2, capsize=2, clip_on=False, **look)
        chance = next(iter(result.compared.values())).chance[role]
        axes.axvline(chance, color=ROLE_COLOURS[role], linestyle=":", zorder=1)
    axes.set_yticks(y, names)
    percent_axis(axes, "kept, share of the role's units", axis="x")
    axes.grid(True, axis="x")
    legend_above(axes, *axes.get_legend_handles_labels(), ncols=3, points=4)
    return figure


def _role_sizes(result: StabilityResult) -> str:
    held = next(iter(result.compared.values())).held
    return "; ".join(f"{spelled([r])}, n = {held[r].n:,}" for r in ("SCU", "UCU", "RU") if r in held)


@styled
def units_by_kind(table: UnitTable) -> Figure:
    """Share of each layer's neurons and heads that are SCU and UCU."""
    figure = new_figure(
        6.0,
        "Where safety and utility units sit, by kind",
        f"Share of the units of that kind in each layer: {table.grid.d_mlp:,} neurons and {table.grid.n_heads} heads a "
        "layer. Panels have scales of their own.",
    )
    panels = figure.subplots(2, sharex=True)
    layers = np.arange(table.grid.n_layers)
    for axes, kind in zip(panels, Kind, strict=True):
        for shift, role in ((-0.2, Role.SCU), (0.2, Role.UCU)):
            mask = table.roles[role].masks[kind]
            label = f"{role}: {mask.sum():,}"
            axes.bar(layers + shift, mask.mean(1), width=0.4, color=ROLE_COLOURS[role], label=label)
        axes.set_title(KIND_TITLES[kind])
        axes.set_ylabel("share of the layer's units")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v * 100:.3g}%"))
        legend_above(axes, *axes.get_legend_handles_labels(), ncols=2, points=22)
    panels[1].set_xlabel("layer (0 = first block)")
    panels[1].xaxis.get_major_locator().set_params(integer=True)
    return figure
