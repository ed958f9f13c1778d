"""Pictures of the refuse-or-fulfil direction: one simple figure per result of stage `direction`."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssah_lens.results import Chain, Curve, DirectionResult, Distances, Flips, Interchange, Onset, Readout
from ssah_lens.show.style import (
    BASELINE,
    INK,
    RANDOM,
    ROLE_COLOURS,
    legend_above,
    new_figure,
    percent_axis,
    styled,
    whiskers,
)
from ssah_lens.show.text import listed
from ssah_lens.show.tokens import drawable
from ssah_lens.show.words import ABLATION_WORDS

MAIN, SECOND = ROLE_COLOURS["SCU"], ROLE_COLOURS["UCU"]
HARMLESS = ROLE_COLOURS["RU"]
CONTROLS = {"random subspace": ("D", "-"), "DAS, arbitrary labels": ("v", "--"), "DAS, untrained model": ("^", ":")}
BASES = {"DAS": ("o", MAIN), "difference of means": ("s", SECOND), "probe": ("P", HARMLESS)}
SHOWN_TOKENS = 6
"""Opening tokens that a caption names."""
DEPTHS = (("#56B4E9", "-"), ("#0072B2", "--"), ("#009E73", "-."), ("#D55E00", "-"), ("#222222", "--"))
"""Colour and line of each number of response tokens."""
NAME_WIDTH = 11
"""Characters of a line under an axis that has up to six names."""
STEPS = "response token (0 = decision position)"


def direction_figures(r: DirectionResult) -> dict[str, Figure]:
    """All figures of the stage, by name."""
    out = {"direction_steered": steered(r), "direction_selection": selection(r)}
    if r.readouts:
        out["direction_auroc"] = separability(r)
    for found in r.interchange:
        out[f"direction_interchange_{found.pairs}"] = interchange(found)
    if r.distances:
        out["direction_distance_sides"] = distance_sides(r.distances)
        out["direction_distance"] = distance(r.distances)
    return out | {"direction_onset": onset(r), "direction_chain": chain(r.chain)}


@styled
def steered(r: DirectionResult) -> Figure:
    """Refusals with the direction ablated and added, beside random directions."""
    base = r.steered[0]
    n, n_ordinary = (side.refused.n if side else 0 for side in (base.harmful, base.harmless))
    figure = new_figure(
        4.6,
        f"Refusals with the direction of block {r.layer} taken out or added",
        f"{n} harmful and {n_ordinary} ordinary test prompts, greedy responses. Ablated: {ABLATION_WORDS[r.ablation]}. "
        "Grey: random directions of the same length. Whiskers: 95% intervals. Empty: not asked.",
    )
    names = list(dict.fromkeys(s.name for s in r.steered))
    for axes, side, title in zip(
        figure.subplots(2, sharex=True), ("harmful", "harmless"), ("Harmful prompts", "Ordinary prompts"), strict=True
    ):
        for x, name in enumerate(names):
            for s in (s for s in r.steered if s.name == name):
                e = getattr(s, side)
                if e is None:
                    continue
                own = s.control is None
                axes.errorbar(
                    x - 0.1 if own else x + 0.15, e.refused.value, yerr=whiskers([e.refused]),
                    fmt="o" if own else "D", color=MAIN if own else RANDOM, capsize=2.5, clip_on=False,
                )  # fmt: skip
        axes.set_title(title)
        percent_axis(axes, "share refused")
    axes.set_xticks(range(len(names)), [textwrap.fill(n, NAME_WIDTH) for n in names])
    return figure


@styled
def selection(r: DirectionResult) -> Figure:
    """The published selection: every candidate by layer."""
    why = "; none does, so the bound on KL was dropped" if r.relaxed else ""
    figure = new_figure(
        5.8,
        "Candidate directions on validation prompts",
        f"Each point is the difference of means over {r.refused_train[1]} train prompts at one layer and "
        "position. Dashed: without a change; KL: the published bound. Dotted: from here on the model refuses. Filled: "
        f"meets the published conditions{why}. Ringed: chosen.",
    )
    panels = (
        ("bypass", "Refusal score, harmful prompts, direction taken out", r.base_scores[0]),
        ("induce", "Refusal score, ordinary prompts, direction added", r.base_scores[1]),
        ("kl", "KL on ordinary prompts, direction taken out", 0.1),
    )
    for axes, (field, title, line) in zip(figure.subplots(len(panels), sharex=True), panels, strict=True):
        for c in r.candidates:
            axes.plot(c.layer, getattr(c, field), "o", color=MAIN, fillstyle="full" if c.allowed else "none", ms=5)
            if (c.layer, c.position) == (r.layer, r.position):
                axes.plot(c.layer, getattr(c, field), "o", color=INK, fillstyle="none", ms=11)
        axes.axhline(line, color=BASELINE, linestyle="--", linewidth=1.1)
        if field != "kl":
            axes.axhline(r.threshold, color=BASELINE, linestyle=":", linewidth=1.1)
        axes.margins(y=0.15)
        axes.set_title(title)
        axes.set_ylabel("nats" if field == "kl" else "log-odds, nats")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("layer")
    return figure


@styled
def separability(r: DirectionResult) -> Figure:
    """AUROC per layer, the best position of each, for both read-outs."""
    sizes = dict.fromkeys(str(f.auroc.n) for f in r.readouts)
    figure = new_figure(
        2.0 + 1.9 * len(r.readouts),
        "What one direction reads of unseen prompts",
        "AUROC: how often the one of two test prompts that should lie further along the direction does; 0.5 = chance. "
        f"At each layer, the best position, n = {listed(list(sizes))} prompts. "
        "Dotted: the layer chosen on validation prompts. Grey band: 95% of shuffled labellings.",
    )
    titles = {"choice": "The choice: refused or answered", "harm": "Harm, in topic-matched pairs"}
    for axes, found in zip(figure.subplots(len(r.readouts), sharex=True, squeeze=False)[:, 0], r.readouts, strict=True):
        low, high = np.quantile(found.null, [0.025, 0.975])
        axes.axhspan(low, high, color=RANDOM, alpha=0.25, linewidth=0, label="shuffled labels")
        _auroc_lines(axes, found)
        axes.set_title(titles[found.target])
        axes.set_ylim(min(0.4, low - 0.03), 1.02)
        axes.set_ylabel("AUROC")
    legend_above(figure.axes[0], *figure.axes[0].get_legend_handles_labels(), ncols=3, points=20)
    axes.set_xlabel("layer (block input)")
    return figure


def _auroc_lines(axes: Axes, found: Readout) -> None:
    for name, values, colour, style in (
        ("difference of means", found.mean_difference, MAIN, "-"),
        ("linear probe", found.probe, SECOND, "--"),
    ):
        axes.plot(np.array(values).max(1), style, color=colour, label=name)
    axes.axvline(found.layer, color=BASELINE, linestyle=":", linewidth=1.1)


@styled
def interchange(found: Interchange) -> Figure:
    """Decisions flipped against the rank of the subspace, with controls."""
    pairs = {"twins": "token-aligned twins", "unmatched": "harmful and ordinary prompts"}[found.pairs]
    whole = found.find("whole state")
    figure = new_figure(
        4.3,
        f"Decisions flipped by interchange at block {found.layer}",
        f"One prompt's state at that block takes the place of its pair's, in so many dimensions. {found.n_test} test "
        f"pairs ({pairs}) taken both ways, bases fitted on {found.n_train} train pairs. DAS: dimensions trained to "
        "flip decisions (distributed alignment search). Grey: controls; arbitrary labels: the share of train pairs "
        "that took theirs. Whiskers: 95% intervals.",
    )
    axes = figure.subplots()
    ranks = sorted({f.rank for f in found.flips if f is not whole})
    place = {rank: i for i, rank in enumerate(ranks)}
    for i, (basis, (marker, colour)) in enumerate(BASES.items()):
        _rank_line(
            axes, [f for f in found.flips if f.basis == basis], place, 0.07 * (i - 1), marker, colour, "-", basis
        )
    for i, (basis, (marker, style)) in enumerate(CONTROLS.items()):
        own = [f for f in found.flips if f.basis == basis]
        _rank_line(axes, own, place, 0.07 * (i + 2), marker, RANDOM, style, basis)
    if whole is not None:
        axes.axhline(whole.flipped.value, color=BASELINE, linestyle="--", linewidth=1.1, label="whole state")
    axes.set_xticks(range(len(ranks)), [str(r) for r in ranks])
    axes.set_xlabel("dimensions exchanged")
    percent_axis(axes, "decisions flipped")
    legend_above(axes, *axes.get_legend_handles_labels(), ncols=3, points=6)
    return figure


def _rank_line(
    axes: Axes,
    flips: Sequence[Flips],
    place: dict[int, int],
    shift: float,
    marker: str,
    colour: str,
    line: str,
    name: str,
) -> None:
    if flips:
        shares = [f.flipped for f in flips]
        axes.errorbar(
            [place[f.rank] + shift for f in flips], [e.value for e in shares], yerr=whiskers(shares), marker=marker,
            linestyle=line if len(flips) > 1 else "none", color=colour, capsize=2.5, clip_on=False, label=name,
        )  # fmt: skip


@styled
def distance_sides(models: Sequence[Distances]) -> Figure:
    """The two distances of the paper's Figures 2 to 4 themselves: a column per model, a row per number of tokens."""
    ks = models[0].tokens
    figure = new_figure(
        1.5 + 1.2 * len(ks),
        "How far from the clean query after refusing and after fulfilling tokens?",
        "Cosine distance of the state after k refusing (or fulfilling) tokens to that of the clean query, mean over "
        f"{models[0].n} harmful prompts and the strings of each side. The lower line is the nearer side.",
    )
    panels = figure.subplots(len(ks), len(models), sharex=True, sharey=True, squeeze=False)
    for row, k in zip(range(len(ks)), ks, strict=True):
        for axes, d in zip(panels[row], models, strict=True):
            for name, side, colour, style in (
                ("D(refuse)", d.refusing, MAIN, "-"),
                ("D(fulfil)", d.fulfilling, SECOND, "--"),
            ):
                axes.plot(np.array(side)[:, row], linestyle=style, color=colour, label=name)
            axes.set_title(f"{d.model.capitalize()} model, k = {k}")
        panels[row, 0].set_ylabel("distance")
    for axes in panels[-1]:
        axes.set_xlabel("block output")
    legend_above(panels[0, 0], *panels[0, 0].get_legend_handles_labels(), ncols=2, points=20)
    return figure


@styled
def distance(models: Sequence[Distances]) -> Figure:
    """The paper's probe: how much nearer to refusing than to fulfilling, per block."""
    figure = new_figure(
        1.4 + 2.3 * len(models),
        "Is a harmful prompt nearer to refusing or to fulfilling?",
        f"Cosine distance to the clean query after k fulfilling tokens minus that after k refusing ones, {models[0].n} "
        "prompts; above 0: nearer to refusing. Bands: 95% intervals over prompts.",
    )
    panels = figure.subplots(len(models), sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, d in zip(panels, models, strict=True):
        gap, low, high = (np.array(v) for v in (d.gap, d.low, d.high))
        for i, k in enumerate(d.tokens):
            colour, style = DEPTHS[i % len(DEPTHS)]
            axes.plot(gap[:, i], linestyle=style, color=colour, label=f"k = {k}")
            axes.fill_between(range(len(gap)), low[:, i], high[:, i], color=colour, alpha=0.15, linewidth=0)
        axes.axhline(0, color=BASELINE, linewidth=1)
        axes.set_title(f"{d.model.capitalize()} model")
        axes.set_ylabel("difference of\ncosine distance")
    panels[-1].set_xlabel("block output")
    legend_above(panels[0], *panels[0].get_legend_handles_labels(), ncols=5, points=20)
    return figure


@styled
def onset(r: DirectionResult) -> Figure:
    """Depth: forced tokens, KL by token, projection along responses."""
    found = r.onset
    panels: list[tuple[str, Callable[[Axes, Onset], None]]]
    panels = [(f"Refused after k forced tokens ({len(found.prefilled[0].hits)} harmful prompts)", _prefill_panel)]
    if found.kl:
        panels.append(("KL to the unaligned model, by response token", lambda axes, o: _curves(axes, o.kl, 1, "nats")))
    panels.append(
        (
            "Projection on the direction along own responses",
            lambda axes, o: _curves(axes, o.projections, 0, "length along it"),
        )
    )
    figure = new_figure(
        1.6 + 2.2 * len(panels),
        "How deep is the choice?",
        "Forced: the response has to begin with the first k tokens of an answer. KL: how far the aligned model's next "
        "token is from the unaligned one's, along the aligned model's own refusals and answers. Bands and whiskers: "
        "95% intervals over prompts.",
    )
    for axes, (title, draw) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        draw(axes, found)
        axes.set_title(title)
        axes.legend(loc="best")
    return figure


def _prefill_panel(axes: Axes, found) -> None:
    for name, rows, colour, marker in (
        ("fulfilling opening", found.prefilled, MAIN, "o"),
        ("same tokens, shuffled", found.shuffled, RANDOM, "D"),
    ):
        axes.errorbar(
            [f.tokens for f in rows], [f.refused.value for f in rows], yerr=whiskers([f.refused for f in rows]),
            marker=marker, linestyle="-" if len(rows) > 1 else "none", color=colour, capsize=2.5, label=name,
        )  # fmt: skip
    axes.set_xlabel("forced tokens k")
    percent_axis(axes, "share refused")


def _curves(axes: Axes, curves: Sequence[Curve], first: int, unit: str) -> None:
    for curve, colour, style in zip(curves, (MAIN, HARMLESS), ("-", "--"), strict=False):
        steps = np.arange(len(curve.mean)) + first
        axes.plot(steps, curve.mean, style, color=colour, label=f"{curve.name} (n={curve.n})")
        axes.fill_between(steps, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xlabel("response token" if first else STEPS)
    axes.set_ylabel(unit)


@styled
def chain(found: Chain) -> Figure:
    """Who writes the refuse-minus-fulfil logit, and where it can be read."""
    figure = new_figure(
        5.0,
        "From prompt to choice: the refuse-minus-fulfil logit",
        f"At the decision position, {found.n} harmful and {found.n} ordinary test prompts. Bars: what each layer's "
        f"attention and MLP write, harmful minus ordinary; they add up to {found.total:.1f}. Refusing: "
        f"{_tokens(found.refusing)}; fulfilling: {_tokens(found.fulfilling)}.",
    )
    lens, bars = figure.subplots(2, sharex=True)
    layers = np.arange(len(found.attention))
    lens.plot(found.lens_harmful, color=MAIN, label="harmful prompts")
    lens.plot(found.lens_harmless, "--", color=HARMLESS, label="ordinary prompts")
    lens.set_title("Logit lens on each block's input")
    lens.set_ylabel("logit difference (nats)")
    lens.legend(loc="best")
    bars.bar(layers - 0.2, found.attention, 0.4, color=MAIN, label="attention")
    bars.bar(layers + 0.2, found.mlp, 0.4, color=SECOND, hatch="//", edgecolor="white", label="MLP")
    bars.axhline(0, color=BASELINE, linewidth=1)
    bars.set_title("Direct contribution of each layer")
    bars.set_ylabel("harmful minus\nordinary (nats)")
    bars.set_xlabel("layer")
    bars.legend(loc="best")
    return figure


def _tokens(texts: Sequence[str]) -> str:
    shown = [drawable(t, 12).replace("$", r"\$") for t in texts[:SHOWN_TOKENS]]
    return ", ".join([*shown, "others"] if len(texts) > SHOWN_TOKENS else shown)
