"""The exact sweep: a metric at the decision position under every one of many interventions.

Exact means what a full forward pass with a hook would give, to rounding. It is cheap because nothing is run that an
edit cannot change: blocks below the edited one (their output is stored), positions before the edited one (their keys
and values are stored), the unembedding of columns that the metric does not read. Many edits share each matrix product.
The engine 'loop' gives the same numbers the plain way, one forward pass per intervention: the reference, and the
fallback for models that cannot be replayed.

The estimand is part of the result: an effect at the decision position and an effect at all positions differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ssah_lens.chat.batch import Batch, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.precision import has_bfloat16
from ssah_lens.errors import BadInput
from ssah_lens.intervene.edits import Edits, all_units, check_layers
from ssah_lens.intervene.fill import Fill, estimand
from ssah_lens.intervene.metric import Metric, finite
from ssah_lens.intervene.replay import CannotReplay
from ssah_lens.intervene.room import Room, room
from ssah_lens.intervene.runners import Looped, Replayed, Runner
from ssah_lens.intervene.sites import Site
from ssah_lens.intervene.store import Store, fingerprint
from ssah_lens.progress import progress

__all__ = ["Edits", "Fill", "Rounding", "Swept", "all_units", "estimand", "sweep"]

ENGINES = ("auto", "replay", "loop")
SAMPLE = 32
"""Interventions that are measured in float32 as well, to state the error of bfloat16."""


@dataclass(frozen=True)
class Rounding:
    """How far bfloat16 is from float32, on a random sample of a sweep's interventions and all of its prompts.

    Attributes:
        n: interventions that were measured both ways.
        largest: of the differences, in units of the metric.
        typical: root of their mean square.
        effect: the same of the float32 effects, for scale.
    """

    n: int
    largest: float
    typical: float
    effect: float


@dataclass(frozen=True)
class Swept:
    """The metric under every intervention.

    Attributes:
        edits: the interventions, in order.
        values: [edit, prompt].
        clean: of the undamaged model, [prompt].
        estimand: what was replaced by what, and at which positions.
        metric: name of the metric.
        engine: 'replay' or 'loop'.
        rounding: error of bfloat16; None in float32.
    """

    edits: tuple[Edits, ...]
    values: Float[np.ndarray, "edit prompt"]
    clean: Float[np.ndarray, " prompt"]
    estimand: str
    metric: str
    engine: str
    rounding: Rounding | None = None

    @property
    def effect(self) -> Float[np.ndarray, "edit prompt"]:
        """Change of the metric by each intervention."""
        return self.values - self.clean


def sweep(
    model: ChatModel,
    rows: Sequence[Row],
    metric: Metric,
    edits: Sequence[Edits],
    fill: Fill,
    last: int | None = 1,
    engine: str = "auto",
    bfloat16: bool = False,
    store: Path | None = None,
    what: str = "sweeping units",
) -> Swept:
    """The metric at the end of every row under every intervention.

    Args:
        model: the undamaged model.
        rows: prompts of any length; the metric is read at their last position.
        metric: what to read.
        edits: the interventions.
        fill: what replaces an activation.
        last: positions that are edited, counted from the end (1: the decision position); None for all.
        engine: 'replay' (exact and fast), 'loop' (one forward pass per intervention), or 'auto': replay where the
            model can be replayed, otherwise the loop, with a warning.
        bfloat16: matrix products in bfloat16, the error of which is measured and stated in the result (`rounding`);
            the loop, and a device without them, stay in float32, with a warning.
        store: .npy file that finished chunks are kept in; the same call resumes there.
        what: label of the progress bar.

    Raises:
        BadInput: a unit or layer outside the model, a metric that is not finite, rows to patch from that do not fit
            the prompts, a store of another sweep, a model that cannot be replayed when the engine is 'replay'.
    """
    _check(model, rows, edits, last, engine)
    longest = max(len(r.ids) for r in rows)
    sources = fill.sources(rows, max(int(e.reaches(last or longest, longest).max(initial=0)) for e in edits))
    if bfloat16 and (engine == "loop" or not has_bfloat16(model.device)):
        which = "the engine 'loop'" if engine == "loop" else f"device '{model.device}'"
        warnings.warn(f"{which} has no bfloat16 arithmetic: sweeping in float32", stacklevel=2)
        bfloat16 = False
    starts = np.cumsum([0, *(len(e) for e in edits)])
    key = fingerprint(model, rows, metric, edits, fill, last, bfloat16) if store else ""
    limits = room(model, longest)
    clean = np.full(len(rows), np.nan)
    with Store.open(store, (int(starts[-1]), len(rows)), key, limits) as kept:
        batches = model.batches(rows, kept.room.batch_tokens, share_prefix=False)
        bar = _Bar(sum(_cost(model, e, batch, last) for _, batch in batches for e in edits), what)
        for chosen, batch in batches:
            # What was found before memory ran out stays: the halves of a batch begin where it ended.
            with batches.room():
                source = None if sources is None else model.pad([sources[i] for i in chosen])
                given = model, batch, metric, fill, source, last, bfloat16, chosen
                runner = _start(engine, given, kept.room)
                engine = "loop" if isinstance(runner, Looped) else engine
                clean[chosen] = finite(runner.clean, metric, "on the undamaged model")
                for i in _hardest_first(edits):
                    e, cost = edits[i], _cost(model, edits[i], batch, last) / max(len(edits[i]), 1)
                    todo = np.flatnonzero(np.isnan(kept.values[starts[i] : starts[i + 1], chosen]).any(1))
                    bar.skip(cost * (len(e) - len(todo)))
                    for part, found in runner.values(e, todo):
                        finite(found, metric, f"with {e.site} of layer {e.layer} replaced")
                        kept.values[np.ix_(starts[i] + part, chosen)] = found
                        bar.skip(cost * len(part))
        bar.close()
        engine = "loop" if engine == "loop" else "replay"
        done = Swept(tuple(edits), np.array(kept.values), clean, estimand(fill, last, edits), metric.name, engine)
    if bfloat16 and engine == "replay":
        return replace(done, rounding=_rounding(model, rows, metric, fill, last, done))
    return done


def _start(engine: str, given: tuple, limits: Room) -> Runner:
    """The runner of a batch; says so when it falls back to the slow one."""
    if engine == "loop":
        return Looped(*given, limits.chunk_tokens)
    try:
        return Replayed(*given, limits.chunk_tokens)
    except CannotReplay as e:
        if engine == "replay":
            raise BadInput(f"{e}; use engine='loop'") from e
        warnings.warn(f"{e}: falling back to one forward pass per intervention, which is slow", stacklevel=3)
        return Looped(*given, limits.chunk_tokens)


def _rounding(
    model: ChatModel, rows: Sequence[Row], metric: Metric, fill: Fill, last: int | None, found: Swept
) -> Rounding:
    """Measures a random sample again in float32."""
    sizes = [len(e) for e in found.edits]
    chosen = np.sort(np.random.default_rng(0).permutation(sum(sizes))[:SAMPLE])
    layer = np.repeat(np.arange(len(sizes)), sizes)[chosen]
    within = chosen - np.cumsum([0, *sizes])[layer]
    sample = [found.edits[i].of(within[layer == i]) for i in np.unique(layer)]
    exact = sweep(model, rows, metric, sample, fill, last, found.engine, what="error of bfloat16")
    off = found.values[chosen] - exact.values
    square = lambda x: float(np.sqrt(np.square(x).mean()))
    return Rounding(len(chosen), float(np.abs(off).max()), square(off), square(exact.effect))


# ---- planning


def _hardest_first(edits: Sequence[Edits]) -> list[int]:
    """Low layers first: they take longest, so the time estimate errs on the safe side."""
    return sorted(range(len(edits)), key=lambda i: edits[i].layer)


def _cost(model: ChatModel, edits: Edits, batch: Batch, last: int | None) -> float:
    """Blocks times positions, for the progress bar."""
    n_rows, n_pos = batch.ids.shape
    reached = edits.reaches(n_pos if last is None else last, n_pos).sum()
    return float(n_rows * (model.grid.n_layers - edits.layer) * reached)


class _Bar:
    """A progress bar in units of work."""

    def __init__(self, total: float, what: str) -> None:
        self.bar = progress(None, what, total=max(1, round(total)), bar_format="{l_bar}{bar}| {elapsed}<{remaining}")
        self.done = 0.0

    def skip(self, work: float) -> None:
        before = round(self.done)
        self.done += work
        self.bar.update(round(self.done) - before)

    def close(self) -> None:
        self.bar.close()


def _check(model: ChatModel, rows: Sequence[Row], edits: Sequence[Edits], last: int | None, engine: str) -> None:
    if engine not in ENGINES:
        raise BadInput(f"no engine '{engine}': allowed are {', '.join(ENGINES)}")
    if not rows or not edits:
        raise BadInput("a sweep needs at least one prompt and one intervention")
    if last is not None and last < 1:
        raise BadInput(f"last is {last}: allowed are 1 or more, or None for all positions")
    for e in edits:
        if e.site is Site.NEURON:
            model.anatomy.check_neurons()
        check_layers(model, [e.layer])
        n = e.site.units(model.anatomy)
        outside = e.units[(e.units < 0) | (e.units >= n)]
        if len(outside):
            raise BadInput(f"no {e.site} {int(outside[0])} in layer {e.layer}: there are 0-{n - 1}")
