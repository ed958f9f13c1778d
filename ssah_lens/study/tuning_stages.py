"""The stages that fine-tune (H5 to H7), as the runner calls them. Each takes the study and returns its result."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ssah_lens.chat.prompts import identity_shift, instructions, pairs
from ssah_lens.errors import BadInput
from ssah_lens.results import Behaviour, BudgetResult, FreezeResult, TransferResult, TuningResult
from ssah_lens.score import score
from ssah_lens.score.roles import rescored
from ssah_lens.study.behaviour import behave
from ssah_lens.study.budget import compare_budgets
from ssah_lens.study.freeze import compare_freezing
from ssah_lens.study.tuning import compare_tuning, tuning_data
from ssah_lens.study.turnover import turnover
from ssah_lens.train.data import rows_of
from ssah_lens.train.loop import TrainSettings
from ssah_lens.units import UnitTable

if TYPE_CHECKING:
    from ssah_lens.chat.model import ChatModel
    from ssah_lens.chat.prompts import PromptSet
    from ssah_lens.study.runner import Study

HELD_OUT = 24
"""Benign validation instructions whose loss is measured before and after fine-tuning."""


def freeze(study: Study) -> FreezeResult:
    """Benign fine-tuning, three ways."""
    ablated = study.folder.load_stage("ablate")  # it measured the same model by the same yardstick
    if ablated is None:
        look = lambda: behave(study.aligned, study.yardstick, choices=False)
        before = study.folder.part("freeze", "before", tuple[Behaviour, tuple[bool, ...]], look)
    else:
        before = ablated.baseline, ablated.baseline_refused
    return compare_freezing(
        study.aligned,
        study.table(),
        study.ordinary_train[1],
        instructions("validation").sample(HELD_OUT, study.config.seed),
        study.yardstick,
        before,
        study.config.freeze,
        study.config.seed,
        study.folder.parts("freeze"),
        study.ahead("freeze"),
    )


def tuning(study: Study) -> TuningResult:
    """Every way of fine-tuning, at equal steps and at equal validation loss."""
    c, seed = study.config.tuning, study.config.seed
    data = [tuning_data(study.aligned, name, *_prompts(study, name)) for name in c.data]
    keep = study.folder.parts("tuning")
    validation = pairs("validation")[0].sample(c.validation, seed)
    scored = {}
    if c.scores:
        calibration = replace(study.calibration, unaligned=study.unaligned)
        scored = {name: score(name)(study.aligned, calibration) for name in c.scores}
    ahead = study.ahead("tuning")
    return compare_tuning(study.aligned, study.table(), data, validation, study.yardstick, c, seed, keep, ahead, scored)


def _prompts(study: Study, name: str) -> tuple[PromptSet, PromptSet]:
    """What to fine-tune on, and what is held out of the same kind."""
    n, seed = study.config.tuning.validation, study.config.seed
    if name == "ordinary":
        return study.ordinary_train[1], instructions("validation").sample(n, seed)
    if name == "terse":
        return instructions("train", "terse"), instructions("validation", "terse").sample(n, seed)
    everything = identity_shift()
    held_out = everything.sample(max(1, len(everything) // 5), seed)
    return everything.without(held_out), held_out


def budget(study: Study) -> BudgetResult:
    """Alignment of the unaligned model through all parameters, redundant units only, random units only."""
    if study.unaligned is None:
        raise BadInput("stage 'budget' aligns the unaligned counterpart anew; name it with --unaligned")
    return compare_budgets(
        study.unaligned,
        study.table(),
        study.alignment_data(study.unaligned),
        study.yardstick_of(study.unaligned),
        study.config.align,
        study.config.budget,
        study.config.seed,
        study.folder.parts("budget"),
        study.ahead("budget", unaligned=True),
    )


def transfer(study: Study) -> TransferResult:
    """Where the roles go by fine-tuning, and whether that carries the loss of safety."""
    c, seed, table = study.config.tuning, study.config.seed, study.table()

    def rescore(model: ChatModel, at: int) -> UnitTable:
        return rescored(table, score(study.config.units.score)(model, study.calibration_of(at)))

    settings = TrainSettings(steps=c.steps, batch_size=c.batch_size, lr=c.lr, seed=seed, keep_good=0)
    rows = rows_of(study.aligned, _prompts(study, "ordinary")[0])
    keep = study.folder.parts("transfer")
    return turnover(study.aligned, table, rescore, rows, study.yardstick, settings, seed, keep, c.top_cu)
