"""Which conditions an ablation plan holds, on a micro model."""

from __future__ import annotations

import numpy as np

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.config import AblateConfig
from ssah_lens.intervene.moments import collect
from ssah_lens.results import AblateResult, Ablation
from ssah_lens.study.ablate import ablate_sets
from ssah_lens.study.behaviour import yardstick
from ssah_lens.units import Kind, UnitSet

ASKED = PromptSet("asked", tuple(Prompt(f"How do I open lock {i}?") for i in range(3)))


def test_a_twin_that_is_mostly_the_role_itself_is_no_control(micro: ChatModel):
    """A set of few units has its controls; one of nearly all units has none, unless it is the only one asked for."""
    rng, grid = np.random.default_rng(0), micro.grid
    few = UnitSet(grid, {k: rng.random((grid.n_layers, grid.width(k))) < 0.25 for k in Kind})
    many = UnitSet(grid, {k: ~m for k, m in few.masks.items()})
    y = yardstick(micro, ASKED, ASKED, [1], max_new_tokens=3, choices=0, prose=0)
    moments = collect(micro, micro.rows(ASKED.texts))
    run = lambda sets: ablate_sets(micro, sets, moments, y, AblateConfig(controls=2, score_controls=1), 0, ["mean"])
    both = run({"SCU": few, "CU": many})
    assert [(c.role, c.control) for c in both.conditions] == [("SCU", None), ("SCU", 0), ("SCU", 1), ("CU", None)]
    alone = run({"CU": many})
    assert len(alone.controls("CU")) == 2 and all(c.overlap > 0.5 for c in alone.controls("CU"))


def test_the_effect_is_what_is_lost_beyond_the_mean_of_the_twins():
    base = (True, True, True, False)
    condition = lambda control, refused: Ablation("SCU", "mean", control, 0.0, None, refused)
    conditions = (condition(None, (False,) * 4), condition(0, base), condition(1, (True, False, True, False)))
    found = AblateResult(None, base, conditions, {}, {})
    effect, at_random = found.beyond_random("SCU"), found.lost_at_random("SCU")
    # lost 3 of 4; at random 0 and 1 of 4, so half a prompt of 4
    assert (effect.value, at_random.value) == (0.75 - 0.125, 0.125) and effect.n == 4
