"""H5: does freezing the safety units keep safety through benign fine-tuning?

Three ways from the same start, on the same examples in the same order: nothing frozen, SCU + top CU frozen, and a
random set of the same size in every layer and kind frozen. The attack stays in memory; weights are put back after.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import PromptSet
from ssah_lens.config import FreezeConfig, limit
from ssah_lens.measure import utility
from ssah_lens.results import Arm, Behaviour, FreezeResult, Training
from ssah_lens.score.roles import scores_of, top_complex
from ssah_lens.study.behaviour import Yardstick, behave
from ssah_lens.study.engine import Ahead, nothing_ahead
from ssah_lens.study.parts import Parts
from ssah_lens.train.checkpoint import Checkpoints
from ssah_lens.train.data import rows_of
from ssah_lens.train.freeze import FrozenSlices, owned_slices
from ssah_lens.train.loop import Trained, TrainSettings, train
from ssah_lens.train.methods import weights_put_back
from ssah_lens.units import Role, UnitSet, UnitTable

FULL, FROZEN, RANDOM = "full", "freeze SCU + top CU", "freeze random"


def frozen_set(table: UnitTable, roles: list[Role], top_cu: float) -> UnitSet:
    """Units of these roles and the `top_cu` share (of all units) of CU with the largest I_S - I_U."""
    units = table.units(roles)
    if top_cu == 0:
        return units
    scores = replace(scores_of(table), layers=None)  # layers bound the other roles: CU are CU everywhere
    return units | top_complex(table.grid, scores, table.roles, top_cu)


def fine_tune(
    model: ChatModel,
    rows: list[Row],
    held_out: list[Row],
    loss_before: float | None,
    settings: TrainSettings,
    units: UnitSet | None,
    what: str,
    checkpoints: Checkpoints | None = None,
) -> Training:
    """Trains in place, with the units' parameters frozen, and measures the held-out loss afterwards."""
    frozen = FrozenSlices(owned_slices(model.anatomy, units)) if units is not None else None
    done = train(model, rows, settings, frozen, what, checkpoints=checkpoints)
    losses = None if loss_before is None else (loss_before, utility.losses(model, held_out).mean)
    return training_result(model, done, losses)


def training_result(model: ChatModel, done: Trained, losses: tuple[float, float] | None) -> Training:
    """The record of a finished training run."""
    return Training(
        done.losses,
        done.examples,
        losses,
        done.frozen_parameters,
        done.frozen_parameters / model.grid.block_parameters,
        done.unchanged,
        done.sha256,
    )


@dataclass(frozen=True)
class Bench:
    """What all ways of fine-tuning share."""

    rows: list[Row]
    held_out: list[Row]
    loss_before: float | None
    yardstick: Yardstick


@dataclass(frozen=True)
class Way:
    """One way of fine-tuning.

    Attributes:
        arm: its name in the results.
        settings: how to train.
        units: what is frozen; None for nothing.
        folder: where its checkpoints are kept; None for none.
    """

    arm: str
    settings: TrainSettings
    units: UnitSet | None
    folder: Path | None


def compare_freezing(
    model: ChatModel,
    table: UnitTable,
    data: PromptSet,
    held_out: PromptSet,
    y: Yardstick,
    before: tuple[Behaviour, tuple[bool, ...]],
    config: FreezeConfig,
    seed: int,
    keep: Parts = Parts(),
    ahead: Ahead = nothing_ahead,
) -> FreezeResult:
    """Fine-tunes each way from the same start and measures safety and loss.

    Args:
        model: the aligned model; its weights are as before when this returns.
        table: its units.
        data: benign instructions with answers.
        held_out: the same kind, not trained on.
        y: the yardstick.
        before: what the model does before, from `behave`.
        config: steps, rate, share of CU, seeds.
        seed: the first seed.
        keep: where finished ways, and checkpoints of the others, are kept.
        ahead: is told which ways will be wanted.
    """
    rows, held = rows_of(model, data, limit(config.answer_tokens)), rows_of(model, held_out)
    loss_before = utility.losses(model, held).mean if held else None
    units = frozen_set(table, [Role.SCU], config.top_cu)
    ways = {}
    for s in range(seed, seed + config.seeds):
        settings = TrainSettings(steps=config.steps, batch_size=config.batch_size, lr=config.lr, seed=s, keep_good=0)
        for arm, frozen in ((FULL, None), (FROZEN, units), (RANDOM, units.random_twin(s))):
            name = f"{arm.replace(' + ', '-').replace(' ', '-')}-{s}"
            ways[name] = Way(arm, settings, frozen, keep.working(name))
    bench = Bench(rows, held, loss_before, y)
    ahead(tuned_arm, bench, ways, Arm)
    arms = (keep(name, Arm, partial(tuned_arm, model, bench, way)) for name, way in ways.items())
    return FreezeResult(*before, tuple(arms))


def tuned_arm(model: ChatModel, bench: Bench, way: Way) -> Arm:
    """Task: fine-tunes one way, measures, and puts the weights back."""
    what = f"fine-tuning, {way.arm}"
    checkpoints = Checkpoints.within(way.folder, model)
    with weights_put_back(model):
        training = fine_tune(
            model, bench.rows, bench.held_out, bench.loss_before, way.settings, way.units, what, checkpoints
        )
        after, refused = behave(model, bench.yardstick, choices=False)
    return Arm(way.arm, way.settings.seed, training, after, refused)
