"""Our numbers beside the paper's: where each intervention takes the share of prompts that are not refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssah_lens.results import AblateResult, FreezeResult
from ssah_lens.show.figures import ARM_NAMES
from ssah_lens.show.reference import PAPER_ABLATION, PAPER_FREEZING
from ssah_lens.show.style import (
    BASELINE,
    INK,
    RANDOM,
    ROLE_COLOURS,
    ROLE_MARKERS,
    new_figure,
    percent_axis,
    spelled,
    styled,
)
from ssah_lens.show.text import count, percent

CAPTION = (
    "Hollow: before; filled: after. The paper: attack success by its own judges (7-8B models, no interval, no random "
    "control). This run: all that is not refused, with the keyword judge, n = {n} harmful test prompts{seeds}. Compare "
    "directions, not digits. {roles}."
)


@dataclass(frozen=True)
class Move:
    """One line of the comparison: a group's name, what was done, and the share not refused before and after."""

    group: str
    name: str
    before: float
    after: float
    colour: str = INK
    marker: str = "o"


@styled
def ablation_beside_paper(result: AblateResult) -> Figure:
    """Roles ablated, this run (mean ablation) above the paper's Table 2; random sets of SCU size are ours alone."""
    base = 1 - result.baseline.harmful.refused.value
    ours = []
    for role in ("SCU", "UCU", "RU"):
        if any(c.role == role and c.mode == "mean" and c.control is None for c in result.conditions):
            ours.append(_of_role("this run", role, base, 1 - result.find(role).behaviour.harmful.refused.value))
    if twins := result.controls("SCU"):
        mean = float(np.mean([1 - c.behaviour.harmful.refused.value for c in twins]))
        ours.append(Move("this run", "random", base, mean, RANDOM, "D"))
    paper = [_of_role(model, role, *_ends(attack)) for model, role, _, attack, _ in PAPER_ABLATION]
    words = CAPTION.format(n=result.baseline.harmful.refused.n, seeds="", roles=spelled(("SCU", "UCU", "RU")))
    return _drawn([*ours, *paper], "Without each role's units, beside the paper", words)


@styled
def freezing_beside_paper(result: FreezeResult) -> Figure:
    """Ways of fine-tuning, this run (mean over seeds) above the paper's AdvBench numbers."""
    base = 1 - result.before.harmful.refused.value
    ours = []
    for name in dict.fromkeys(a.name for a in result.arms):
        after = float(np.mean([1 - a.after.harmful.refused.value for a in result.arms if a.name == name]))
        ours.append(Move("this run", ARM_NAMES.get(name, name), base, after, *_look(name)))
    paper = [Move(model, method, *_ends(attack), *_look(method)) for model, method, attack in PAPER_FREEZING]
    seeds = f", mean over {count(len({a.seed for a in result.arms}), 'seed')}"
    words = CAPTION.format(n=result.before.harmful.refused.n, seeds=seeds, roles=spelled(("SCU", "CU")))
    return _drawn([*ours, *paper], "After benign fine-tuning, beside the paper", words)


def _of_role(group: str, role: str, before: float, after: float) -> Move:
    return Move(group, role, before, after, ROLE_COLOURS[role], ROLE_MARKERS[role])


def _look(method: str) -> tuple[str, str]:
    if "random" in method:
        return RANDOM, "D"
    return (ROLE_COLOURS["SCU"], "s") if "SCU" in method else (INK, "o")


def _ends(attack: str) -> tuple[float, float]:
    before, after = (float(part) / 100 for part in attack.split("→"))
    return before, after


def _drawn(moves: Sequence[Move], title: str, words: str) -> Figure:
    groups = list(dict.fromkeys(m.group for m in moves))
    figure = new_figure(1.7 + 0.26 * len(moves) + 0.42 * len(groups), title, words)
    axes = figure.subplots()
    y, ticks = 0.0, []
    for group in groups:
        axes.text(-0.02, y, group, fontweight="bold", va="center")
        y += 0.95
        for m in (m for m in moves if m.group == group):
            _dumbbell(axes, y, m)
            ticks.append((y, m.name))
            y += 1.0
        y += 0.5
    axes.set_yticks([t for t, _ in ticks], [name for _, name in ticks])
    axes.set_ylim(y - 0.6, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    percent_axis(axes, "harmful prompts not refused", "x")
    return figure


def _dumbbell(axes: Axes, y: float, m: Move) -> None:
    axes.plot([m.before, m.after], [y, y], color=m.colour, linewidth=2, alpha=0.55, clip_on=False)
    hollow = {"markerfacecolor": "white", "markeredgecolor": BASELINE}
    axes.plot(m.before, y, m.marker, markersize=6, clip_on=False, **hollow)
    axes.plot(m.after, y, m.marker, color=m.colour, markersize=7, clip_on=False)
    end = max(m.before, m.after)
    inside = end < 0.9
    axes.annotate(
        f"{percent(m.before)} → {percent(m.after)}",
        (end if inside else min(m.before, m.after), y), (8 if inside else -8, 0), textcoords="offset points",
        ha="left" if inside else "right", va="center", fontsize=9,
    )  # fmt: skip
