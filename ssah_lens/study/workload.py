"""How much a stage has to do with a configuration, so that its time can be told beforehand.

The unit is one test prompt answered with twelve tokens; what other work costs beside it was read off runs of
smollm2-135m on two cores. Only ratios are used, to a profile whose minutes were measured, so the weights need be right
within a factor of two. Stages that are not listed take what they take in their profile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ssah_lens.config import MeasureConfig, StudyConfig, UnitsConfig, study_config
from ssah_lens.study.plan import MINUTES

ALL = 190
"""Prompts where the configuration says 'all': about as many as the test split has."""
TOKENS = 12
ROW = 1.3
"""An example that is trained on once."""
GATE_STEP = 14
"""A step of a learnt score: both gates."""
EXACT = 8200
"""The exact effect of every unit on sixteen prompts of each side."""
ALL_UNITS = 46_350
"""Units of smollm2-135m."""
AGAIN = 4.75
"""Equal validation loss in the worst case: runs of 1.25, 1.5 and 2 times the steps."""


def stage_minutes(config: StudyConfig, stage: str) -> float:
    """Minutes that a stage takes for smollm2-135m on two CPU cores, told to the user beforehand."""
    usual = MINUTES[config.profile][stage]
    work = WORK.get(stage)
    return usual if work is None else usual * work(config) / work(study_config(profile=config.profile))


def units_minutes(config: UnitsConfig) -> float:
    """The same of scores and role sizes alone."""
    return MINUTES["quick"]["units"] * scored_and_cut(config) / scored_and_cut(study_config(profile="quick").units)


def _n(count: int | Literal["all"]) -> int:
    return ALL if count == "all" else count


def asked(m: MeasureConfig) -> float:
    """The yardstick, once: a response costs its prompt and its tokens, about half each."""
    return (_n(m.harmful) + _n(m.ordinary)) * _length(m) + _n(m.choices) / 4


def _length(m: MeasureConfig) -> float:
    return 0.5 + 0.5 * m.max_new_tokens / TOKENS


def scored(u: UnitsConfig) -> float:
    """The scores of all units."""
    collected = 2 * u.calibration
    if u.score == "mask":
        return collected + GATE_STEP * u.steps
    if u.score == "exact":
        return collected + EXACT * min(1, (u.exact_units or ALL_UNITS) / ALL_UNITS) * u.exact_prompts / 16
    return 3 * collected


def scored_and_cut(u: UnitsConfig) -> float:
    """The scores, and the sizes of the roles."""
    other_roles = 5
    return scored(u) + (len(u.scu) + other_roles) * u.validation


def _ablate(c: StudyConfig) -> float:
    a = c.ablate
    sets = 1 + 4 * len(a.modes) + a.controls + 3 * a.other_controls + 2 * len(a.doses) + a.score_controls / 6
    return sets * asked(c.measure) * (1 + len(a.harmful) / 2)


def _freeze(c: StudyConfig) -> float:
    return 3 * c.freeze.seeds * (ROW * c.freeze.steps * c.freeze.batch_size + asked(c.measure))


def _tuning(c: StudyConfig) -> float:
    t, m = c.tuning, c.measure
    ways = len({"full", *t.methods}) + 2 * len(t.shares) + 2 * (len(t.scores) + len(t.places)) + len(t.mixes)
    trained = ROW * t.steps * t.batch_size
    measured = asked(m) + 3 * _n(m.harmful) * _length(m) + t.validation
    again = (ways - 1) * (AGAIN * trained + measured)
    return len(t.data) * t.seeds * (ways * (trained + measured) + again)


def _budget(c: StudyConfig) -> float:
    return 3 * c.budget.seeds * (ROW * c.align.steps * c.align.batch_size + asked(c.measure))


def _transfer(c: StudyConfig) -> float:
    measured = 13  # before, twice tuned, and ten sets put back
    return 3 * scored(c.units) + 2 * ROW * c.tuning.steps * c.tuning.batch_size + measured * _n(c.measure.harmful)


WORK: dict[str, Callable[[StudyConfig], float]] = {
    "refusal": lambda c: asked(c.measure),
    "units": lambda c: scored_and_cut(c.units),
    "stability": lambda c: c.stability.reruns * scored(c.units),
    "ablate": _ablate,
    "freeze": _freeze,
    "tuning": _tuning,
    "budget": _budget,
    "transfer": _transfer,
}
