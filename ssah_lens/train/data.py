"""Rows to train on, checked before any work: answers are there, and nothing is longer than the model's context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssah_lens.chat.batch import Position, Row
from ssah_lens.chat.fits import context_length
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import PromptSet, pairs
from ssah_lens.chat.prompts import refusals as written_refusals
from ssah_lens.errors import BadInput


def rows_of(model: ChatModel, data: PromptSet, answer_tokens: int | None = None) -> list[Row]:
    """Training rows of prompts with given answers, each under its own system prompt where it has one.

    Args:
        model: whose tokens.
        data: prompts with answers.
        answer_tokens: cut longer answers there; None keeps them whole.
    """
    answers = [model.response_tokens(p.response)[:answer_tokens] for p in data]
    return [model.rows([p.text], [a], p.system or None)[0] for p, a in zip(data, answers, strict=True)]


def refusing_rows(model: ChatModel, harmful: PromptSet, seed: int) -> list[Row]:
    """Harmful prompts, each with one of the shipped refusals of the train part, drawn anew for each."""
    texts = written_refusals("train")
    drawn = np.random.default_rng(seed).integers(len(texts), size=len(harmful))
    return model.rows(harmful.texts, [model.response_tokens(texts[i]) for i in drawn], harmful.systems)


def mixed_in(model: ChatModel, rows: Sequence[Row], share: float, seed: int) -> list[Row]:
    """The rows, and refusals of shipped train prompts: `share` of the number of rows, at least one.

    Raises:
        BadInput: a share that is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise BadInput(f"the share of refusals to mix in is {share}; allowed is above 0 and at most 1, for example 0.1")
    harmful = pairs("train")[0].sample(max(1, round(share * len(rows))), seed)
    return [*rows, *refusing_rows(model, harmful, seed)]


def check_rows(model: ChatModel, rows: Sequence[Row], name: str = "the training data") -> None:
    """Refuses what cannot be trained on.

    Raises:
        BadInput: no rows, a row without an answer, or one that is longer than the context.
    """
    if not rows or any(row.positions[-1] != Position.RESPONSE for row in rows):
        raise BadInput("training needs at least one example, and an answer in each")
    longest = context_length(model.plain)
    long = [i for i, row in enumerate(rows) if longest is not None and len(row.ids) > longest]
    if long:
        raise BadInput(
            f"{name}: row {long[0] + 1} has {len(rows[long[0]].ids)} tokens, the context of {model.name} holds "
            f"{longest}; shorten or remove it (such rows: {len(long)} of {len(rows)})"
        )
