"""H7 in a study: do safety units turn into others when fine-tuning lowers safety, and does that carry the loss?

The model is scored before, after benign fine-tuning with nothing held, and after the same fine-tuning with refusals
mixed in, which leaves safety alone; the same model scored on another calibration sample is the null. Then the
parameters of the units that lost the role SCU are put back, beside those that kept it and random twins of both: if the
loss of refusals sits in the units that changed their role, they alone bring refusals back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.measure.refusal import refusals
from ssah_lens.results import Restored, RoleMoves, TransferReport, TransferResult
from ssah_lens.stats import Estimate
from ssah_lens.study.behaviour import Yardstick
from ssah_lens.study.keep import Keep, anew
from ssah_lens.study.transfer import recut, transfer
from ssah_lens.train.freeze import owned_slices
from ssah_lens.train.loop import TrainSettings
from ssah_lens.train.methods import Method, tune, weights_put_back
from ssah_lens.units import Role, UnitSet, UnitTable

BEFORE, TUNED, SAFE = "before", "tuned", "tuned safely"
LOST, HELD, TWIN = "SCU that lost the role", "SCU that kept it", "random twin of "


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
    """

    def turned(name: str, method: Method) -> Turned:
        start = {p: p.detach().clone() for p in model.plain.parameters()}
        with weights_put_back(model):
            tune(model, rows, settings, method, f"fine-tuning, {name}")
            refused, after = _refused(model, y, name), rescore(model, seed)
            restored = _restored(model, start, before, after, y, seed) if name == TUNED else []
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


def _restored(model, start, before: UnitTable, after: UnitTable, y: Yardstick, seed: int) -> list[Restored]:
    """Refusals of the tuned model with the parameters of some units put back."""
    was = before.roles[Role.SCU]
    held = was & recut(after, before)[Role.SCU]
    out = []
    for name, units in ((LOST, was - held), (HELD, held)):
        if not len(units):
            continue
        for label, chosen in ((name, units), (TWIN + name, units.random_twin(seed))):
            with put_back(model, start, chosen):
                out.append(Restored(label, len(chosen), _refused(model, y, label)))
    return out


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
