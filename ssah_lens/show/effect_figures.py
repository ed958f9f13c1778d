"""Two effects of the same units against each other: an approximation and the exact effect, or two estimands."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ssah_lens.errors import BadInput
from ssah_lens.results import EffectAgreement
from ssah_lens.show.patching_plotly import dressed
from ssah_lens.show.picture import Picture
from ssah_lens.show.style import BASELINE, ROLE_COLOURS, new_figure, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

MANY = 50
"""Units from which a few far ones would squeeze the others together: axes are logarithmic beyond the bulk."""
BULK = 0.98
NAMED = 5
"""Missed units whose name is written beside them."""
CLEAR = np.array([0.25, 0.035])
"""Room of a name, in parts of the axes."""
SHOWN, MISSED = ROLE_COLOURS["UCU"], ROLE_COLOURS["SCU"]
INTERACTIVE = 3000
"""More points than this are thinned in the interactive figure; the missed ones always stay."""


def agreement_picture(found: EffectAgreement) -> Picture:
    """Still and interactive."""
    return Picture(agreement_scatter(found), lambda: _plotly(found))


@styled
def agreement_scatter(found: EffectAgreement) -> Figure:
    """What is judged against what judges it (to the right), one point per unit; what is missed in another colour.

    Raises:
        BadInput: unequal lengths, no units, values that are not finite.
    """
    exact, guess = _checked(found)
    missed = np.isin(np.array(found.labels), found.missed)
    figure = new_figure(5.6, _title(found), caption(found))
    axes = figure.subplots()
    ends = np.array([min(exact.min(), guess.min()), max(exact.max(), guess.max())])
    axes.plot(ends, ends, color=BASELINE, linewidth=1, linestyle="--", zorder=1)
    size = 5 if exact.size > 2000 else 14
    for of, colour, alpha, marker in ((~missed, SHOWN, 0.4, "o"), (missed, MISSED, 0.9, "D")):
        axes.scatter(
            exact[of], guess[of], s=size if marker == "o" else size + 8, color=colour, alpha=alpha, marker=marker,
            linewidths=0, rasterized=True,
        )  # fmt: skip
    if exact.size > MANY:
        _stretched(axes, exact, guess, ends)
    axes.grid(True, axis="both")
    axes.margins(0.08)
    _name_missed(axes, found, exact, guess)
    axes.set_xlabel(f"{found.against} (change of the metric, nats)")
    axes.set_ylabel(found.name)
    return figure


def _name_missed(axes: Axes, found: EffectAgreement, exact: np.ndarray, guess: np.ndarray) -> None:
    """The strongest first; a name that would run into one that stands already is left out."""
    taken: list[np.ndarray] = []
    for name in found.missed[:NAMED]:
        i = found.labels.index(name)
        place = axes.transAxes.inverted().transform(axes.transData.transform((exact[i], guess[i])))
        if all((np.abs(place - t) > CLEAR).any() for t in taken):
            taken.append(place)
            right = place[0] > 0.75
            axes.annotate(
                name, (exact[i], guess[i]), (-6 if right else 6, 0), textcoords="offset points", fontsize=8,
                va="center", ha="right" if right else "left",
            )  # fmt: skip


def _title(found: EffectAgreement) -> str:
    return f"{found.name[0].upper()}{found.name[1:]} beside the {found.against}"


def caption(found: EffectAgreement) -> str:
    """How to read the picture, with n."""
    told = [f"One point each, n = {len(found.exact):,}; mean over {found.n} prompts. Dashed: equal."]
    if len(found.exact) > MANY:
        told.append("Axes are logarithmic beyond the bulk.")
    if found.spearman is not None:
        told.append(f"Spearman correlation {found.spearman:.2f}.")
    told += [f"Of the top {100 * k:.3g}% by size, {v:.0%} agree." for k, v in found.overlap.items()]
    if found.missed:
        k = 100 * max(found.overlap)
        told.append(f"Diamonds: in the top {k:.3g}% by {found.against}, and not in the other; the strongest of them.")
    return f"Replaced by {found.estimand}. Metric: {found.metric}. {' '.join(told)}"


def _checked(found: EffectAgreement) -> tuple[Float[np.ndarray, " item"], Float[np.ndarray, " item"]]:
    exact, guess = np.asarray(found.exact, dtype=float), np.asarray(found.guess, dtype=float)
    if not exact.shape == guess.shape == (len(found.labels),) or not exact.size:
        raise BadInput(
            f"the scatter needs two effects of the same units, got {exact.size} and {guess.size} for "
            f"{len(found.labels)} labels"
        )
    if not (np.isfinite(exact).all() and np.isfinite(guess).all()):
        raise BadInput("an effect is not finite; leave those units out on both sides")
    return exact, guess


def _stretched(axes: Axes, exact: np.ndarray, guess: np.ndarray, ends: np.ndarray) -> None:
    """Linear over the bulk, logarithmic beyond it."""
    bulk = float(np.quantile(np.abs(np.concatenate([exact, guess])), BULK)) or 1e-6
    above = _ticks_above(bulk, max(float(np.abs(ends).max()), bulk))
    inside = _round_down(0.6 * bulk)
    ticks = [*(-v for v in above[::-1]), -inside, 0, inside, *above]
    axes.set_xscale("symlog", linthresh=bulk, linscale=2)
    axes.set_yscale("symlog", linthresh=bulk, linscale=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [f"{v:.2g}" for v in ticks])
        axis.set_minor_locator(NullLocator())


def _ticks_above(bulk: float, most: float) -> list[float]:
    """Round numbers where the axis is logarithmic: powers of ten, and 2 and 5 where those are too few."""
    powers = range(math.floor(math.log10(bulk)), math.ceil(math.log10(most)) + 1)
    digits = (1, 2, 5) if most < 30 * bulk else (1,)
    return [v for p in powers for d in digits if 1.2 * bulk < (v := d * 10.0**p) <= most]


def _round_down(value: float) -> float:
    """The largest of ..., 0.5, 1, 2, 5, 10, ... that is not above a positive number."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(d * power for d in (1, 2, 5) if d * power <= value * (1 + 1e-9))


def _plotly(found: EffectAgreement) -> go.Figure:
    """Hover tells which unit a point is."""
    import plotly.graph_objects as go

    exact, guess = _checked(found)
    missed = np.isin(np.array(found.labels), found.missed)
    kept = missed.copy()
    kept[np.argsort(-np.abs(exact), kind="stable")[: INTERACTIVE // 2]] = True
    kept[:: max(1, 2 * len(exact) // INTERACTIVE)] = True
    figure = go.Figure()
    for of, colour, name in ((kept & ~missed, SHOWN, "ranked alike"), (missed, MISSED, "missed")):
        figure.add_scattergl(
            x=exact[of], y=guess[of], mode="markers", marker={"color": colour, "size": 6, "opacity": 0.6}, name=name,
            text=[label for label, here in zip(found.labels, of, strict=True) if here],
            hovertemplate="%{text}<br>%{x:.4f} exact, %{y:.4f} guessed<extra></extra>",
        )  # fmt: skip
    figure.update_layout(xaxis_title=f"{found.against} (change of the metric, nats)", yaxis_title=found.name)
    return dressed(figure, _title(found), caption(found), 480, 60)
