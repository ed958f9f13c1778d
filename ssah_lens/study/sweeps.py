"""The exact sweep in parts, one for the units of a kind in a layer: each is kept, and a cluster makes them ahead.

A sweep treats each layer and kind by itself, so that the numbers are those of one whole sweep, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.intervene.metric import Metric
from ssah_lens.intervene.sweep import Edits, Fill, sweep
from ssah_lens.progress import progress
from ssah_lens.score.base import Effects
from ssah_lens.study.engine import Ahead, nothing_ahead
from ssah_lens.study.keep import Keep

Shared = tuple[Sequence[Row], Metric, Fill, int | None]


def swept(model: ChatModel, shared: Shared, edits: Edits) -> list[float]:
    """Task: the mean effect of every edit."""
    rows, metric, fill, last = shared
    what = f"{edits.site} of layer {edits.layer}"
    return sweep(model, rows, metric, [edits], fill, last, what=what).effect.mean(1).tolist()


def effects_in_parts(keep: Keep, ahead: Ahead = nothing_ahead) -> Effects:
    """How the exact score measures when what it has measured is to be kept.

    Args:
        keep: where finished parts are kept.
        ahead: is told which ones will be wanted.
    """

    def effects(
        model: ChatModel,
        rows: Sequence[Row],
        metric: Metric,
        edits: Sequence[Edits],
        fill: Fill,
        last: int | None,
        what: str,
    ) -> Float[np.ndarray, " edit"]:
        shared, items = (rows, metric, fill, last), {f"{what}-{e.site}-{e.layer}": e for e in edits}
        ahead(swept, shared, items, list[float])
        bar = progress(items.items(), f"exact effects, {what}")
        return np.concatenate([keep(name, list[float], partial(swept, model, shared, e)) for name, e in bar])

    return effects
