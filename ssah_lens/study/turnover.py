"""H7 in a study: do safety units turn into others when fine-tuning lowers safety, and does that carry the loss?

The model is scored before, after benign fine-tuning with nothing held, and after the same fine-tuning with refusals
mixed in, which leaves safety alone; the same model scored on another calibration sample is the null. Then the
parameters of the units that lost the role SCU are put back, beside those that kept it and random twins of both: if the
loss of refusals sits in the units that changed their role, they alone bring refusals back. So are the units that H5
freezes, and, to see where else the loss sits, all units of a kind and all of a third of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.measure.refusal import refusals
from ssah_lens.results import Restored, RoleMoves, TransferReport, TransferResult
from ssah_lens.stats import Estimate
from ssah_lens.study.behaviour import Yardstick
from ssah_lens.study.freeze import frozen_set
from ssah_lens.study.keep import Keep, anew
from ssah_lens.study.places import NAMES, place
from ssah_lens.study.transfer import recut, transfer
from ssah_lens.train.freeze import owned_slices
from ssah_lens.train.loop import TrainSettings
from ssah_lens.train.methods import Method, tune, weights_put_back
from ssah_lens.units import Role, UnitSet, UnitTable

BEFORE, TUNED, SAFE = "before", "tuned", "tuned safely"
LOST, HELD, FROZEN, TWIN = "SCU that lost the role", "SCU that kept it", "SCU + top CU", "random twin of "
THIRDS = 3
"""Parts of the depth that are put back, each as a whole."""


@dataclass(frozen=True)
class Turned:
    """One fine-tuning, measured: what it costs an interrupted run.

    Attributes:
        refused: share of harmful test prompts that the tuned model refuses.
        moves: where its roles went.
        restored: refusals with some units' parameters put back.
    """

    refused: Estimate
    moves: TransferReport
    restored: tuple[Restored, ...]


def turnover(
    model: ChatModel,
    before: UnitTable,
    rescore: Callable[[ChatModel, int], UnitTable],
    rows: Sequence[Row],
    y: Yardstick,
    settings: TrainSettings,
    seed: int,
    keep: Keep = anew,
    top_cu: float = 0.0,
) -> TransferResult:
    """Fine-tunes twice, scores each time, and tells where the roles went.

    Args:
        model: the aligned model; its weights are as before when this returns.
        before: its units.
        rescore: scores a model as it is now, by the same score, with calibration prompts drawn by a seed.
        rows: benign examples to fine-tune on.
        y: the yardstick (test prompts).
        settings: the fine-tuning.
        seed: calibration seed of `before`; the null is drawn with the next one.
        keep: makes a part of the result, or reads it back where an interrupted run kept it.
        top_cu: share of all units that H5 freezes beside the SCU.
    """

    def turned(name: str, method: Method) -> Turned:
        start = {p: p.detach().clone() for p in model.plain.parameters()}
        with weights_put_back(model):
            tune(model, rows, settings, method, f"fine-tuning, {name}")
            refused, after = _refused(model, y, name), rescore(model, seed)
            chosen = {} if name != TUNED else _chosen(before, after, top_cu, seed) | _places(before)
            restored = [_restored(model, start, units, y, label) for label, units in chosen.items()]
        return Turned(refused, transfer(before, after), tuple(restored))

    refused = {BEFORE: keep(BEFORE, Estimate, lambda: _refused(model, y, BEFORE))}
    chance = keep("null", TransferReport, lambda: transfer(before, rescore(model, seed + 1)))
    tuned = keep("tuned", Turned, lambda: turned(TUNED, Method()))
    safe = keep("tuned-safely", Turned, lambda: turned(SAFE, Method("mix-refusals")))
    by_tuning, by_safe, by_chance = (
        RoleMoves(r.matrix, r.counts, r.held, r.chance) for r in (tuned.moves, safe.moves, chance)
    )
    refused |= {TUNED: tuned.refused, SAFE: safe.refused}
    return TransferResult(chance.score, chance.n_units, refused, by_tuning, by_safe, by_chance, tuned.restored)


def _chosen(before: UnitTable, after: UnitTable, top_cu: float, seed: int) -> dict[str, UnitSet]:
    """Label -> SCU that lost the role, SCU that kept it, what H5 freezes, and a random twin of each."""
    was = before.roles[Role.SCU]
    held = was & recut(after, before)[Role.SCU]
    named = {LOST: was - held, HELD: held, FROZEN: frozen_set(before, [Role.SCU], top_cu)}
    some = {label: units for label, units in named.items() if len(units)}
    return {k: u for label, units in some.items() for k, u in ((label, units), (TWIN + label, units.random_twin(seed)))}


def _places(before: UnitTable) -> dict[str, UnitSet]:
    """Label -> all units of a kind, and all units of a part of the depth."""
    grid = before.grid
    kinds = {f"all {NAMES[k]}": place(grid, f"{NAMES[k]} 0-{grid.n_layers - 1}") for k in grid.kinds}
    thirds = [p for p in np.array_split(np.arange(grid.n_layers), THIRDS) if len(p)]
    names = [f"blocks {part[0]}-{part[-1]}" for part in thirds]
    return kinds | {name: place(grid, name) for name in names}


def _restored(model: ChatModel, start, units: UnitSet, y: Yardstick, label: str) -> Restored:
    """Refusals of the tuned model with the parameters of these units put back."""
    with put_back(model, start, units):
        return Restored(label, len(units), _refused(model, y, label))


@contextmanager
def put_back(model: ChatModel, start: dict[torch.nn.Parameter, torch.Tensor], units: UnitSet):
    """The parameters that these units own have the values of `start` inside."""
    slices = owned_slices(model.anatomy, units)
    tuned = [s.values for s in slices]
    with torch.no_grad():
        for s in slices:
            s.parameter.index_copy_(s.dim, s.index, start[s.parameter].index_select(s.dim, s.index))
    try:
        yield
    finally:
        with torch.no_grad():
            for s, values in zip(slices, tuned, strict=True):
                s.parameter.index_copy_(s.dim, s.index, values)


def _refused(model: ChatModel, y: Yardstick, what: str) -> Estimate:
    return refusals(model, y.harmful, y.judge, y.max_new_tokens, what).rate()
