"""The time said beforehand follows the configuration."""

from __future__ import annotations

import pytest

from ssah_lens.config import COMMAND_UNITS, PROFILES, UnitsConfig, study_config
from ssah_lens.study.plan import MINUTES, STAGES
from ssah_lens.study.workload import WORK, stage_minutes, units_minutes


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_as_it_is_takes_what_was_measured(profile: str):
    config = study_config(profile=profile)
    assert {s: pytest.approx(stage_minutes(config, s)) for s in STAGES} == MINUTES[profile]


def changed(section: str, **values) -> dict[str, float]:
    """Stage -> how many times as long as in the quick profile."""
    config = study_config()
    part = getattr(config, section).model_copy(update=values)
    other = config.model_copy(update={section: part})
    return {s: stage_minutes(other, s) / MINUTES["quick"][s] for s in STAGES}


@pytest.mark.parametrize(
    ("section", "values", "stage", "times"),
    [
        ("tuning", {"seeds": 3}, "tuning", 3),
        ("tuning", {"data": ("ordinary", "terse")}, "tuning", 2),
        ("budget", {"seeds": 2}, "budget", 2),
        ("freeze", {"seeds": 4}, "freeze", 4),
        ("stability", {"reruns": 8}, "stability", 2),
    ],
)
def test_what_is_done_so_many_times_takes_so_many_times_as_long(section: str, values: dict, stage: str, times: int):
    found = changed(section, **values)
    assert found.pop(stage) == pytest.approx(times)
    assert set(found.values()) == {1.0}


def test_more_prompts_and_longer_responses_take_longer_wherever_they_are_asked():
    for values in ({"harmful": "all", "ordinary": "all"}, {"max_new_tokens": 48}):
        found = changed("measure", **values)
        assert {s for s, times in found.items() if times > 1} >= {"refusal", "ablate", "freeze", "tuning", "budget"}
        assert found["units"] == 1


def test_a_score_of_forward_passes_is_not_told_the_time_of_one_that_learns():
    minutes = {s: units_minutes(UnitsConfig.model_validate({"score": s} | COMMAND_UNITS)) for s in ("wanda", "mask")}
    exact = UnitsConfig.model_validate({"score": "exact"} | COMMAND_UNITS)
    assert minutes["wanda"] < minutes["mask"] < units_minutes(exact)
    assert units_minutes(exact) > 3 * units_minutes(exact.model_copy(update={"exact_units": 2000}))


def test_every_stage_that_is_counted_is_one():
    assert set(WORK) <= set(STAGES)
