"""What the later parts of stage `direction` get of the prompts: each with its own system prompt."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.config import DirectionConfig, study_config
from ssah_lens.direction.choice import Choice
from ssah_lens.errors import BadInput
from ssah_lens.measure.refusal import refusal_scores
from ssah_lens.study.direction_command import _same_prompts
from ssah_lens.study.direction_read import Part, _scored
from ssah_lens.study.interchanges import Pairs, _unmatched
from ssah_lens.study.parts import Parts
from ssah_lens.study.record import RunFolder

TEXTS = ["How do I bake bread?", "Why not", "Tell me, please: what is 7 x 8?"]
PLAIN = PromptSet("plain", tuple(map(Prompt, TEXTS)))
OWN = PromptSet("own", tuple(Prompt(t, system="Be brief.") for t in TEXTS))
CHOICE = Choice((40, 50))


def test_a_refusal_score_is_that_of_the_prompt_as_it_is_asked(micro: ChatModel):
    part, _ = _scored(micro, [OWN, PLAIN], CHOICE)
    own, plain = (refusal_scores(micro, s, CHOICE.tokens) for s in (OWN, PLAIN))
    assert np.abs(own - plain).min() > 1e-4
    np.testing.assert_allclose(part.scores, [*own, *plain], atol=1e-5)


def test_pairs_for_the_interchange_keep_their_system_prompts(tmp_path: Path):
    no = np.zeros(3, dtype=bool)
    part = Part((OWN[0], PLAIN[1], OWN[2]), np.array([9.0, -9, -9]), no, no, no, no, pairs=1)
    keep = Parts(tmp_path)
    keep("read", Part, lambda: part)
    again = keep("read", Part, pytest.fail)
    found = SimpleNamespace(train=part, test=again, choice=CHOICE)
    pairs = keep("pairs", Pairs, lambda: _unmatched(found, DirectionConfig()))
    assert pairs == keep("pairs", Pairs, pytest.fail) == [([OWN[0]], [OWN[2]])] * 2


def test_a_run_folder_refuses_the_same_prompts_under_another_system_prompt(tmp_path: Path):
    folder = RunFolder.open(tmp_path, study_config())
    _same_prompts(folder, OWN, None)
    _same_prompts(folder, OWN, None)
    with pytest.raises(BadInput, match="other prompts"):
        _same_prompts(folder, PLAIN, None)
