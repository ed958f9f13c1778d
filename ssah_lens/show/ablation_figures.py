"""Pictures of ablation: what is left without each role, beside matched random sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssah_lens.results import AblateResult, Behaviour
from ssah_lens.show.style import (
    BASELINE,
    INK,
    RANDOM,
    ROLE_COLOURS,
    ROLE_NAMES,
    legend_above,
    new_figure,
    percent_axis,
    ratio_axis,
    spelled,
    styled,
    whiskers,
)
from ssah_lens.show.text import listed
from ssah_lens.stats import Estimate

LOOKS = {"mean": ("o", 7, -0.22), "zero": ("X", 7.5, 0.0)}
"""Mode of ablation -> marker, size, place beside the role's tick."""
Value = Callable[[Behaviour], Estimate | None]
PANELS: tuple[tuple[str, str, Value], ...] = (
    ("Harmful prompts refused", "share of prompts", lambda b: b.harmful.refused),
    (
        "Incoherent responses to harmful prompts (damage, not choice)",
        "share of prompts",
        lambda b: b.harmful.incoherent,
    ),
    ("Utility: multiple choice answered correctly", "share of items", lambda b: b.utility.choices),
)


@styled
def roles_ablated(result: AblateResult) -> Figure:
    """What is left without each role: refusals, coherence and utility, beside matched random sets."""
    roles = list(dict.fromkeys(c.role for c in result.conditions))
    base = result.baseline
    n = base.harmful.refused.n
    ratio = "Utility: perplexity relative to the undamaged model", "ratio (log scale)", lambda b: _ratio(b, base)
    panels = [p for p in (*PANELS, ratio) if any(p[2](c.behaviour) is not None for c in result.conditions)]
    figure = new_figure(
        1.7 + 1.95 * len(panels),
        f"Without each role's units ({n} harmful test prompts)",
        f"Each random set has as many units in every layer and kind as its role{_without_twins(result, roles)}. "
        f"Dashed line: the undamaged model. Whiskers: 95% intervals.{_items(base)} "
        "Perplexity: of the undamaged model's own answers to "
        f"{base.utility.answer_perplexity.n} ordinary instructions, relative to the undamaged model (above 1 = worse).",
    )
    all_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (title, label, value) in zip(all_axes, panels, strict=True):
        _role_points(axes, result, roles, value)
        axes.set_title(title)
        if "ratio" in label:
            ratio_axis(axes, label)
        else:
            percent_axis(axes, label)
        baseline = value(base)
        if baseline is not None:
            axes.axhline(
                baseline.value, color=BASELINE, linestyle="--", linewidth=1.1, zorder=1, label="undamaged model"
            )
    name = lambda role: f"{role}\n{ROLE_NAMES[role]}" if role in ROLE_NAMES else role
    size = lambda role: f"\n{result.shares[role].units:.1%} of units" if role in result.shares else ""
    sizes = [name(role) + size(role) for role in roles]
    all_axes[-1].set_xticks(range(len(roles)), sizes)
    all_axes[-1].set_xlim(-0.5, len(roles) - 0.5)
    _legend(all_axes[0])
    return figure


def _without_twins(result: AblateResult, roles: Sequence[str]) -> str:
    """A reader who misses the grey points of a role is told that there are none."""
    bare = [r for r in roles if not any(c.role == r and c.control is not None for c in result.conditions)]
    return f" (none was measured for {listed(bare)})" if bare else ""


def _items(base: Behaviour) -> str:
    return "" if base.utility.choices is None else f" Multiple choice: {base.utility.choices.n} items."


def _ratio(b: Behaviour, base: Behaviour) -> Estimate:
    e, by = b.utility.answer_perplexity, base.utility.answer_perplexity.value
    low, high = (None if v is None else v / by for v in (e.low, e.high))
    return Estimate(e.value / by, low, high, e.n)


def _role_points(axes: Axes, result: AblateResult, roles: Sequence[str], value: Value) -> None:
    """Mean ablation, zero ablation and the random sets of every role, side by side."""
    for x, role in enumerate(roles):
        colour = ROLE_COLOURS.get(role, INK)
        own = [c for c in result.conditions if c.role == role and c.control is None]
        for c in own:
            marker, size, shift = LOOKS.get(c.mode, ("P", 7, 0.1))
            _point(axes, x + shift, value(c.behaviour), marker, colour, size, f"role, {c.mode} ablation")
        twins = [c for c in result.conditions if c.role == role and c.control is not None]
        for i, c in enumerate(twins):
            spread = 0.12 + 0.28 * (i + 0.5) / max(len(twins), 2)
            _point(axes, x + spread, value(c.behaviour), "D", RANDOM, 5, f"random set, {c.mode} ablation")


def _point(axes: Axes, x: float, e: Estimate | None, marker: str, colour: str, size: float, label: str) -> None:
    if e is None:
        return
    axes.errorbar(
        x, e.value, yerr=whiskers([e]), fmt=marker, color=colour, markersize=size, elinewidth=1.3, capsize=2.5,
        clip_on=False, label=label,
    )  # fmt: skip


def _legend(axes: Axes) -> None:
    """One entry per label, in grey where the same shape comes in several colours."""
    from matplotlib.lines import Line2D

    entries: dict[str, Line2D] = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        line = handle[0] if isinstance(handle, tuple) else handle
        colour = RANDOM if label.startswith("random") else INK
        entries.setdefault(
            label, Line2D([], [], color=colour, marker=line.get_marker(), linestyle=line.get_linestyle())
        )
    legend_above(axes, list(entries.values()), list(entries), ncols=2, points=24)


@styled
def score_controls(result: AblateResult, role: str | None = None) -> Figure:
    """Refusal score without a role's units, among the scores without each of many matched random sets.

    Args:
        result: stage `ablate`.
        role: one of the keys of `score_controls`; the first when None.
    """
    role = role or next(iter(result.score_controls))
    at_random = np.array(result.score_controls[role])
    own, base = result.find(role).behaviour.refusal_score, result.baseline.refusal_score
    figure = new_figure(
        3.6,
        f"Refusal score without the {role}, and without {at_random.size} matched random sets",
        f"Each score is a mean over {own.n} harmful prompts: log-odds that the first token is one of those that open "
        "this model's refusals. Below 0 it may still refuse, where one of them is the likeliest of many. All by mean "
        f"ablation. Shaded: 95% interval. {spelled([role])}.",
    )
    axes = figure.subplots()
    ends = [*at_random, own.value, base.value]
    span = max(max(ends) - min(ends), 1e-6)
    axes.hist(
        at_random, bins=np.linspace(min(ends), max(ends), 41), color=RANDOM, alpha=0.8, label="random sets",
    )  # fmt: skip
    axes.plot(at_random, np.zeros_like(at_random), "|", color=INK, markersize=9, clip_on=False)
    colour = ROLE_COLOURS.get(role, INK)
    if own.low is not None and own.high is not None:
        axes.axvspan(own.low, own.high, color=colour, alpha=0.18, linewidth=0)
    axes.axvline(own.value, color=colour, linewidth=2.4, label=f"without the {role}")
    axes.axvline(base.value, color=BASELINE, linestyle="--", label="undamaged model")
    axes.set_xlim(min([*ends, own.low or own.value]) - 0.06 * span, max([*ends, own.high or own.value]) + 0.06 * span)
    axes.set_xlabel("mean refusal score (log-odds, nats)")
    axes.set_ylabel("random sets")
    axes.yaxis.get_major_locator().set_params(integer=True)
    legend_above(axes, *axes.get_legend_handles_labels(), ncols=3, points=5)
    return figure
