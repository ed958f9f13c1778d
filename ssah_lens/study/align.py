"""Alignment: an unaligned model learns to refuse, by supervised fine-tuning (METHOD.md section 7).

Harmful prompts get varied refusals. On harmless ones the model is anchored to its own token distributions along its own
answers (half of them greedy, half sampled), so that only the choice is taught. Plain likelihood of greedy own answers
sharpened the model (perplexity of answers written by people rose by a third).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import PromptSet, forms
from ssah_lens.config import AlignConfig, limit
from ssah_lens.study.behaviour import own_answers
from ssah_lens.train.checkpoint import Checkpoints
from ssah_lens.train.data import refusing_rows
from ssah_lens.train.freeze import FrozenSlices
from ssah_lens.train.loop import Trained, TrainSettings, train
from ssah_lens.train.objective import Anchors

APOLOGY = ("sorry", "apolog", "chatbot", "i can't", "i cannot")
"""An own answer that opens like this is left out: it would teach the model to refuse harmless prompts."""
APOLOGY_CHARACTERS = 80


def with_forms(harmful: PromptSet, ordinary: PromptSet, config: AlignConfig, seed: int) -> tuple[PromptSet, PromptSet]:
    """Harmful prompts and ordinary instructions, with the shipped request forms beside them.

    A small model takes the forms of its training prompts for the choice itself: aligned on the pairs alone,
    smollm2-135m refused 74% of MaliciousInstruct ('Ways to ...', 'Ideas for ...') and 24% of the self-instruct seeds.
    """
    n = limit(config.forms)
    add = lambda prompts, label: PromptSet(prompts.name, (*prompts, *forms(label).sample(n, seed)))
    return add(harmful, "harmful"), add(ordinary, "harmless")


@dataclass(frozen=True)
class AlignmentData:
    """Training rows for alignment."""

    harmful: list[Row]
    harmless: list[Row]

    def __len__(self) -> int:
        return len(self.harmful) + len(self.harmless)


def alignment_data(
    model: ChatModel, harmful: PromptSet, twins: PromptSet | None, ordinary: PromptSet, config: AlignConfig, seed: int
) -> AlignmentData:
    """Builds the examples from train prompts: no more than training will see, in the same proportions.

    Args:
        model: the unaligned model; its own answers are used.
        harmful: harmful prompts.
        twins: harmless twins, or None.
        ordinary: ordinary instructions.
        config: sizes.
        seed: which refusal goes with which prompt, and the sampled answers.
    """
    harmful, twins, ordinary = _as_many_as_count(config, seed, harmful, twins or PromptSet("twins", ()), ordinary)
    refusing = refusing_rows(model, harmful, seed)
    greedy = PromptSet("harmless", ordinary.prompts[1::2])
    sampled = PromptSet("harmless", (*twins, *ordinary.prompts[::2]))
    answers = own_answers(model, sampled, config.answer_tokens, "own answers, sampled", sample_seed=seed, rough=True)
    answers += own_answers(model, greedy, config.answer_tokens, "own answers, greedy", rough=True)
    prompts, systems = sampled.texts + greedy.texts, sampled.systems + greedy.systems
    kept = [i for i, a in enumerate(answers) if not _apologises(model.text(a))]
    take = lambda values: [values[i] for i in kept]
    return AlignmentData(refusing, model.rows(take(prompts), take(answers), take(systems)))


def align(
    model: ChatModel,
    data: AlignmentData,
    config: AlignConfig,
    seed: int,
    frozen: FrozenSlices | None = None,
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Trains the model in place: refusals by likelihood, harmless answers by staying close to the unaligned model."""
    settings = TrainSettings(steps=config.steps, batch_size=config.batch_size, lr=config.lr, seed=seed, keep_good=0)
    anchors = Anchors(data.harmless, model.copy(), config.anchor)
    return train(model, data.harmful, settings, frozen, "aligning", anchors, checkpoints=checkpoints)


def _as_many_as_count(config: AlignConfig, seed: int, *sets: PromptSet) -> list[PromptSet]:
    """Samples of these sets that all steps together go through once; the sets where they are fewer."""
    share = config.steps * config.batch_size / sum(map(len, sets))
    return [s.sample(min(len(s), math.ceil(share * len(s))), seed) for s in sets]


def _apologises(answer: str) -> bool:
    opening = answer[:APOLOGY_CHARACTERS].lower().replace("\u2019", "'")
    return any(word in opening for word in APOLOGY)
