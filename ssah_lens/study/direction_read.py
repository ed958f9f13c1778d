"""The first half of stage `direction`: states and choices of every split, what is read off them, the candidates.

States are large, so what the later parts need of them is taken at once: an interrupted run keeps this part whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from pydantic import PlainSerializer, PlainValidator

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.config import DirectionConfig
from ssah_lens.direction.choice import Choice, calibrated
from ssah_lens.direction.extract import cells, differences
from ssah_lens.direction.separability import areas
from ssah_lens.direction.states import States, collect_asked, collect_states
from ssah_lens.measure.judges import Outcome
from ssah_lens.results import Readout
from ssah_lens.study.direction_data import DirectionData
from ssah_lens.study.readouts import CHOICE, HARM, Labelled, readout

MIN_SIDE = 8
"""With fewer refused harmful (or answered harmless) train prompts there is no choice to take a mean of."""
OTHERS = 256
"""States are large (up to 1 MB a prompt): of the user's sets no more prompts than this enter the read-outs."""
Array = Annotated[np.ndarray, PlainValidator(np.asarray), PlainSerializer(lambda a: a.tolist())]
"""Kept in a file as nested lists."""


@dataclass(frozen=True)
class Part:
    """The prompts of a split: harmful sides of the pairs, their twins, ordinary instructions, borderline prompts.

    Attributes:
        prompts: what was asked.
        scores: refusal scores.
        harm: True on harmful prompts.
        choice: True on refused prompts, `fulfilled` on answered ones; noise is neither.
        edge: True on borderline prompts (test split only).
        pairs: number of matched pairs.
        responses: token ids of the responses; () to validation prompts, which are not asked.
    """

    prompts: tuple[Prompt, ...]
    scores: Array
    harm: Array
    choice: Array
    fulfilled: Array
    edge: Array
    pairs: int
    responses: tuple[list[int], ...] = ()

    def answered_rows(self, model: ChatModel) -> list[Row]:
        """Harmless prompts that were answered (all harmless ones when none was), with their responses."""
        answered = self.fulfilled & ~self.harm
        chosen = np.flatnonzero(answered if answered.any() else ~self.harm)
        return model.rows([self.prompts[i] for i in chosen], [self.responses[i] for i in chosen])

    def labelled(self, states: States) -> Labelled:
        return Labelled(states, self.harm, self.choice, self.pairs, self.edge)


@dataclass(frozen=True)
class Read:
    """What was read off the states.

    Attributes:
        train, test: prompts and choices.
        choice: how to tell a refusal from the refusal score.
        by_choice: candidates are refused harmful minus answered harmless prompts; False: harmful minus harmless, too
            few being refused (or answered).
        positions: text of the tokens after the instruction.
        readouts: what one direction reads (H1).
        tried: (layer, position from the end) of the candidates, and their vectors, [candidate, d_model].
        harm: difference of means of the matched pairs where harm is read; None where it is not.
    """

    train: Part
    test: Part
    choice: Choice
    by_choice: bool
    positions: tuple[str, ...]
    readouts: tuple[Readout, ...]
    tried: tuple[tuple[int, int], ...]
    vectors: Array
    harm: Array | None

    def readout(self, target: str) -> Readout | None:
        return next((r for r in self.readouts if r.target == target), None)

    @property
    def candidates(self) -> dict[tuple[int, int], torch.Tensor]:
        """As `extract` takes them."""
        return {
            (cell[0], cell[1]): torch.tensor(v, dtype=torch.float32)
            for cell, v in zip(self.tried, self.vectors, strict=True)
        }


def read(
    model: ChatModel, data: DirectionData, tokens: Sequence[int], config: DirectionConfig, seed: int, judge: str
) -> Read:
    """Runs train and test prompts with answers, validation prompts without, and reads the choice and harm off them.

    Args:
        model: the model under study.
        data: prompts by split.
        tokens: refusal-opening token ids.
        config: sizes.
        seed: seed of the shuffles.
        judge: which judge.
    """
    train, at_train = _asked(model, [*data.train, data.train_ordinary], 0, tokens, config, judge)
    clear = train.choice | train.fulfilled  # noise is neither
    choice = calibrated(tokens, train.scores[clear], train.choice[clear])
    by_choice = min((train.choice & train.harm).sum(), (train.fulfilled & ~train.harm).sum()) >= MIN_SIDE
    validation, at_validation = _scored(model, [*data.validation, data.validation_ordinary], choice)
    test, at_test = _asked(model, [*data.test, data.ordinary, data.safe, data.unsafe], 2, tokens, config, judge)
    splits = train.labelled(at_train), validation.labelled(at_validation), test.labelled(at_test)
    others = _others(model, data, tokens, config, seed, judge)
    found = [readout(target, *splits, config.shuffles, seed, others) for target in (CHOICE, HARM)]
    tried, vectors = _candidates(train, at_train, validation, at_validation, bool(by_choice), config)
    return Read(
        train, test, choice, bool(by_choice), at_train.labels, tuple(r for r in found if r is not None), tuple(tried),
        vectors, _harm(train, at_train, found[1]),
    )  # fmt: skip


def _asked(
    model: ChatModel, sets: Sequence[PromptSet], edge: int, tokens: Sequence[int], config: DirectionConfig, judge: str
) -> tuple[Part, States]:
    """With judged answers; the last `edge` sets are borderline ones, safe and unsafe."""
    states, said = collect_asked(model, sets, tokens, judge, config.max_new_tokens)
    is_ = lambda outcome: np.concatenate([s.is_(outcome) for s in said])
    part = _part(sets, states, is_(Outcome.REFUSED), is_(Outcome.FULFILLED), edge)
    return replace(part, responses=tuple(t for s in said for t in s.tokens)), states


def _others(
    model: ChatModel, data: DirectionData, tokens: Sequence[int], config: DirectionConfig, seed: int, judge: str
) -> Labelled | None:
    """The user's prompts with judged answers, at most `OTHERS` of a side."""
    if data.others is None:
        return None
    part, states = _asked(model, [s.sample(OTHERS, seed) for s in data.others], 0, tokens, config, judge)
    return replace(part.labelled(states), name=", ".join(s.name for s in data.others))


def _scored(model: ChatModel, sets: Sequence[PromptSet], choice: Choice) -> tuple[Part, States]:
    """With choices read off the refusal score: one forward pass, no answers."""
    states = collect_states(model, [p for s in sets for p in s], choice.tokens)
    refused = choice.refuses(states.scores)
    return _part(sets, states, refused, ~refused, 0), states


def _part(sets: Sequence[PromptSet], states: States, refused: np.ndarray, fulfilled: np.ndarray, edge: int) -> Part:
    last = len(sets) - 1
    each = lambda values: np.repeat(values, [len(s) for s in sets])
    harm = each([i == 0 or (edge > 0 and i == last) for i in range(len(sets))])
    at_edge = each([i > last - edge for i in range(len(sets))])
    prompts = tuple(p for s in sets for p in s)
    return Part(prompts, states.scores, harm, refused, fulfilled, at_edge, len(sets[0]))


def _candidates(
    train: Part, at_train: States, validation: Part, at_validation: States, by_choice: bool, config: DirectionConfig
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Published filter: harmful prompts that are refused minus harmless ones that are answered."""
    everyone = np.ones(len(train.harm), dtype=bool)
    kept = (train.choice & train.harm) | (train.fulfilled & ~train.harm) if by_choice else everyone
    vectors = differences(at_train.where(kept), train.harm[kept])
    chosen = validation.choice
    truth = chosen if by_choice and 0 < chosen.sum() < len(chosen) else validation.harm
    separation = areas(torch.einsum("nlpd,lpd->nlp", at_validation.values, vectors).numpy(), truth)
    tried = cells(separation, config.layer_step, None if config.per_layer == "all" else config.per_layer)
    return tried, np.stack([vectors[cell].numpy() for cell in tried])


def _harm(train: Part, states: States, found: Readout | None) -> np.ndarray | None:
    if found is None:
        return None
    n = train.pairs
    at = states.values[: 2 * n, found.layer, found.position]
    return (at[:n].mean(0) - at[n:].mean(0)).numpy()
