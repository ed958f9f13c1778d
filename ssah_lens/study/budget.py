"""H6: are redundant units budget enough to align a model, and is the tax smaller?

The same alignment of the same unaligned model three ways: all block parameters are trained, only those of the most
redundant units, only those of a random set of the same size in every layer and kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ssah_lens.chat.model import ChatModel
from ssah_lens.config import AlignConfig, BudgetConfig
from ssah_lens.measure import utility
from ssah_lens.results import Behaviour, BudgetArm, BudgetResult
from ssah_lens.score.roles import ranking, scores_of
from ssah_lens.study.align import AlignmentData, align
from ssah_lens.study.behaviour import Yardstick, behave
from ssah_lens.study.engine import Ahead, nothing_ahead
from ssah_lens.study.freeze import training_result
from ssah_lens.study.keep import Keep, anew
from ssah_lens.train.freeze import FrozenSlices, other_slices
from ssah_lens.train.methods import weights_put_back
from ssah_lens.units import Role, UnitSet, UnitTable, top_units

ALL, REDUNDANT, RANDOM = "all", "RU only", "random only"


def redundant(table: UnitTable, share: float) -> UnitSet:
    """The most redundant units at a fixed share, by the ranking that role RU is cut from.

    A share of its own, not the role's size: the paper trains 20% of all units, our rule for RU stops far earlier.
    """
    return top_units(table.grid, ranking(scores_of(table), Role.RU), share)


@dataclass(frozen=True)
class Bench:
    """What all ways of aligning share.

    Attributes:
        data: alignment examples.
        yardstick: made from the unaligned model.
        how: the alignment.
        start: loss on the unaligned model's own answers before, nats per token.
    """

    data: AlignmentData
    yardstick: Yardstick
    how: AlignConfig
    start: float


@dataclass(frozen=True)
class Way:
    """One way of aligning: its name in the results, the only units that are trained (None for all), the seed."""

    arm: str
    only: UnitSet | None
    seed: int


def compare_budgets(
    unaligned: ChatModel,
    table: UnitTable,
    data: AlignmentData,
    y: Yardstick,
    how: AlignConfig,
    config: BudgetConfig,
    seed: int,
    keep: Keep = anew,
    ahead: Ahead = nothing_ahead,
) -> BudgetResult:
    """Aligns each way from the same start and measures safety and tax.

    Args:
        unaligned: the model to align; its weights are as before when this returns.
        table: units of a model of the same shape, with their scores.
        data: alignment examples.
        y: the yardstick, made from the unaligned model: the tax is paid on its own answers.
        how: the alignment.
        config: share of units, seeds.
        seed: the first seed.
        keep: makes a part of the result, or reads it back where an interrupted run kept it.
        ahead: is told which ways will be wanted.
    """
    units = redundant(table, config.share)
    bench = Bench(data, y, how, utility.losses(unaligned, y.answers).mean)
    before = keep("unaligned", Behaviour, lambda: behave(unaligned, y)[0])
    ways = {}
    for s in range(seed, seed + config.seeds):
        for name, only in ((ALL, None), (REDUNDANT, units), (RANDOM, units.random_twin(s))):
            ways[f"{name}-{s}".replace(" ", "-")] = Way(name, only, s)
    ahead(aligned_arm, bench, ways, BudgetArm)
    arms = (keep(name, BudgetArm, partial(aligned_arm, unaligned, bench, way)) for name, way in ways.items())
    return BudgetResult(before, tuple(arms))


def aligned_arm(unaligned: ChatModel, bench: Bench, way: Way) -> BudgetArm:
    """Task: aligns one way, measures, and puts the weights back."""
    frozen = FrozenSlices(other_slices(unaligned.anatomy, way.only)) if way.only is not None else None
    y = bench.yardstick
    with weights_put_back(unaligned):
        done = align(unaligned, bench.data, bench.how, way.seed, frozen)
        after, refused = behave(unaligned, y)
        tax = utility.losses(unaligned, y.answers).mean - bench.start
    training = training_result(unaligned, done, None)
    return BudgetArm(way.arm, way.seed, 1 - training.frozen_share, training, after, refused, tax)
