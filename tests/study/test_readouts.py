"""Read-outs on made-up states whose axes are known: the choice, and harm."""

from __future__ import annotations

import numpy as np
import torch

from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.config import DirectionConfig, MeasureConfig
from ssah_lens.direction.states import States
from ssah_lens.study.direction_data import direction_data
from ssah_lens.study.readouts import CHOICE, HARM, Labelled, readout

PAIRS = 8


def labelled(harm: np.ndarray, choice: np.ndarray, leak: float = 0.0) -> Labelled:
    """One cell of two channels: the choice (and `leak` of harm in it), and harm."""
    values = np.stack([choice + leak * harm, harm.astype(float)], -1)
    states = States(torch.tensor(values, dtype=torch.float32)[:, None, None], np.zeros(len(harm)), ("x",))
    return Labelled(states, harm, choice, PAIRS, np.zeros(len(harm), dtype=bool), "own, ordinary")


def split(leak: float = 0.0) -> Labelled:
    """Eight pairs, half of either side refused: the choice says nothing of harm."""
    harm = np.repeat([True, False], PAIRS)
    return labelled(harm, np.arange(2 * PAIRS) % 2 == 0, leak)


def found(target: str, leak: float = 0.0, others: Labelled | None = None):
    return readout(target, split(leak), split(leak), split(leak), 4, 0, others)


def test_within_says_whether_the_direction_reads_more_than_its_target():
    """Harm among refused prompts alone, the choice among harmless prompts alone: all tied, or told apart."""
    for target in (CHOICE, HARM):
        clean, leaking = found(target), found(target, leak=0.25)
        assert clean.auroc.value == leaking.auroc.value == 1 and clean.auroc.n == 2 * PAIRS
        assert clean.other.value == clean.within.value == 0.5
        assert leaking.within.value == 1 and clean.within.n == leaking.within.n == PAIRS


def test_other_prompts_are_scored_against_label_and_behaviour():
    """Here the model refuses what is harmless and answers what is harmful: the two cannot be taken for one another."""
    harm = np.repeat([True, False], PAIRS)
    others = labelled(harm, ~harm)
    by_choice, by_harm = (found(t, others=others).elsewhere for t in (CHOICE, HARM))
    assert by_choice.prompts == "own, ordinary"
    assert (by_choice.choice.value, by_choice.harm.value) == (1, 0)
    assert (by_harm.choice.value, by_harm.harm.value) == (0, 1)
    assert (by_harm.probe_choice.value, by_harm.probe_harm.value) == (0, 1) and by_harm.harm.n == 2 * PAIRS
    assert found(CHOICE).elsewhere is None


def test_a_set_that_is_all_refused_has_no_behaviour_to_score():
    harm = np.repeat([True, False], PAIRS)
    other = found(CHOICE, others=labelled(harm, np.ones_like(harm))).elsewhere
    assert other.choice is None and other.harm is not None


def test_the_users_prompts_reach_the_readouts():
    own = PromptSet("own", tuple(Prompt(f"Do {i}") for i in range(9)))
    config, measure = DirectionConfig(), MeasureConfig()
    assert direction_data(config, measure, 0).others is None
    data = direction_data(config, measure, 0, harmful=own)
    assert data.others == (own, data.ordinary) and data.harmful is own
    assert direction_data(config, measure, 0, ordinary=own).others[1] is own
