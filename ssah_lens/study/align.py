"""Alignment: an unaligned model learns to refuse, by supervised fine-tuning (METHOD.md section 7).

Harmful prompts get varied refusals. Harmless ones get the model's own answers, so that only the choice is taught:
each ordinary instruction once with its greedy and once with a sampled answer. Greedy answers alone sharpen the model
(perplexity of answers written by people rose by a third), sampled ones alone blur it; together both stay put.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssah_lens.chat.model import ChatModel, Row
from ssah_lens.chat.prompts import PromptSet
from ssah_lens.chat.prompts import refusals as written_refusals
from ssah_lens.config import AlignConfig
from ssah_lens.study.behaviour import own_answers
from ssah_lens.train.freeze import FrozenSlices
from ssah_lens.train.loop import Trained, TrainSettings, train

APOLOGY = ("sorry", "apolog", "chatbot", "i can't", "i cannot")
"""An own answer that opens like this is left out: it would teach the model to refuse harmless prompts."""
APOLOGY_CHARACTERS = 80


@dataclass(frozen=True)
class AlignmentData:
    """Training rows for alignment."""

    harmful: list[Row]
    harmless: list[Row]

    @property
    def rows(self) -> list[Row]:
        return self.harmful + self.harmless


def alignment_data(
    model: ChatModel, harmful: PromptSet, twins: PromptSet | None, ordinary: PromptSet, config: AlignConfig, seed: int
) -> AlignmentData:
    """Builds the examples from train prompts.

    Args:
        model: the unaligned model; its own answers are used.
        harmful: harmful prompts.
        twins: harmless twins, or None.
        ordinary: ordinary instructions.
        config: sizes.
        seed: which refusal goes with which prompt, and the sampled answers.
    """
    refusals = written_refusals("train")
    drawn = np.random.default_rng(seed).integers(len(refusals), size=len(harmful))
    refusing = model.rows(harmful.texts, [model.response_tokens(refusals[i]) for i in drawn])
    sampled = PromptSet("harmless", (*(twins or ()), *ordinary))
    answers = own_answers(model, sampled, config.answer_tokens, "own answers, sampled", sample_seed=seed)
    answers += own_answers(model, ordinary, config.answer_tokens, "own answers, greedy")
    prompts = sampled.texts + ordinary.texts
    kept = [i for i, a in enumerate(answers) if not _apologises(model.text(a))]
    return AlignmentData(refusing, model.rows([prompts[i] for i in kept], [answers[i] for i in kept]))


def align(
    model: ChatModel, data: AlignmentData, config: AlignConfig, seed: int, frozen: FrozenSlices | None = None
) -> Trained:
    """Trains the model in place."""
    settings = TrainSettings(steps=config.steps, batch_size=config.batch_size, lr=config.lr, seed=seed)
    return train(model, data.rows, settings, frozen, what="aligning")


def _apologises(answer: str) -> bool:
    opening = answer[:APOLOGY_CHARACTERS].lower().replace("\u2019", "'")
    return any(word in opening for word in APOLOGY)
