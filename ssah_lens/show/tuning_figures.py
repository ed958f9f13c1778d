"""Curves of a fine-tuning: the loss of every step, and what looks at the model on the way saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ssah_lens.errors import BadInput
from ssah_lens.results import CurvePoint
from ssah_lens.show.style import INK, RANDOM, ROLE_COLOURS, legend_above, new_figure, percent_axis, styled

LOOKS = ((INK, "o", "-"), (ROLE_COLOURS["SCU"], "s", "--"), (RANDOM, "D", ":"), (ROLE_COLOURS["UCU"], "^", "-."),
         (ROLE_COLOURS["RU"], "v", "--"), (ROLE_COLOURS["CU"], "P", ":"))  # fmt: skip
"""Colour, marker and line of each run, in their order; no two are told apart by colour alone."""


@styled
def tuning_curves(runs: Mapping[str, Sequence[CurvePoint]], prompts: int, title: str = "While fine-tuning") -> Figure:
    """Refusals, and the loss on held-out answers where it was measured, at every look.

    Args:
        runs: name -> its curve.
        prompts: harmful validation prompts that each look asked.
        title: above the figure.

    Raises:
        BadInput: no run, a run without a look, or more runs than there are looks to tell them apart.
    """
    if not runs or not all(runs.values()) or len(runs) > len(LOOKS):
        raise BadInput(f"{len(runs)} runs: allowed are 1 to {len(LOOKS)}, each with at least one look (--curve-every)")
    measured = any(p.validation_loss is not None for curve in runs.values() for p in curve)
    words = f"Each point: n = {prompts} harmful validation prompts, one seed per line."
    words += " Loss: answers held out from the fine-tuning data." if measured else ""
    figure = new_figure(5.6 if measured else 3.4, title, words)
    panels = figure.subplots(2 if measured else 1, sharex=True, squeeze=False)[:, 0]
    for (name, curve), (colour, marker, line) in zip(runs.items(), LOOKS, strict=False):
        style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 6, "clip_on": False}
        panels[0].plot([p.step for p in curve], [p.refused for p in curve], label=name, **style)
        if measured:
            losses = [np.nan if p.validation_loss is None else p.validation_loss for p in curve]
            panels[1].plot([p.step for p in curve], losses, **style)
    percent_axis(panels[0], "share of prompts")
    panels[0].set_title("Harmful prompts refused")
    if measured:
        panels[1].set_title("Validation loss (lower = learned more)")
        panels[1].set_ylabel("nats per token")
        panels[1].margins(y=0.15)
    panels[-1].set_xlabel("optimizer steps done")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    if len(runs) > 1:
        legend_above(panels[0], *panels[0].get_legend_handles_labels(), ncols=2, points=22)
    return figure
