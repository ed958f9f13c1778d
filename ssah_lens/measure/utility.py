"""What a model is still good for: loss on answers and prose, multiple choice, KL to the undamaged model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssah_lens import stats
from ssah_lens.chat.batch import Batch, Row
from ssah_lens.chat.fits import context_length
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, shipped
from ssah_lens.measure.stored import StoredRows
from ssah_lens.stats import Estimate


@dataclass(frozen=True)
class Losses:
    """Negative log-likelihood of given responses.

    Attributes:
        nll: summed over the response's tokens, in nats.
        tokens: how many tokens were scored.
    """

    nll: Float[np.ndarray, " row"]
    tokens: Int[np.ndarray, " row"]

    @property
    def per_token(self) -> Float[np.ndarray, " row"]:
        return self.nll / np.maximum(self.tokens, 1)

    @property
    def mean(self) -> float:
        """Nats per token over all tokens."""
        return float(self.nll.sum() / max(self.tokens.sum(), 1))

    @property
    def perplexity(self) -> Estimate:
        return stats.perplexity(self.nll, self.tokens)


def response_nll(logits: Float[Tensor, "token vocab"], batch: Batch) -> Float[Tensor, " token"]:
    """Negative log-likelihood of each response token, from `ChatModel.response_logits`."""
    return torch.nn.functional.cross_entropy(logits.float(), batch.ids[batch.response], reduction="none")


@torch.inference_mode()
def losses(model: ChatModel, rows: Sequence[Row]) -> Losses:
    """Scores the RESPONSE tokens of each row; only their logits are computed."""
    nll, tokens = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
    batches = model.batches(rows, batch_tokens=2048)
    for chosen, batch in batches:
        with batches.room():
            per_token = response_nll(model.response_logits(batch), batch).double().cpu().numpy()
            row = batch.response_rows.cpu().numpy()
            nll[chosen] = np.bincount(row, per_token, len(chosen))
            tokens[chosen] = np.bincount(row, minlength=len(chosen))
    return Losses(nll, tokens)


def prose_losses(model: ChatModel, limit: int | None = None) -> Losses:
    """Losses on the shipped prose, read as plain text without a chat template, as far as the context reaches."""
    texts = [r["text"] for r in _spread(shipped("prose"), limit)]
    n = context_length(model.plain)
    rows = [Row(row.ids[:n], row.positions[:n]) for row in model.text_rows([""] * len(texts), texts)]
    return losses(model, rows)


@dataclass(frozen=True)
class Choices:
    """Multiple-choice results.

    Attributes:
        tasks: sub-test of each item.
        correct: whether the right option had the highest length-normalised log-probability.
        chance: accuracy of guessing.
    """

    tasks: tuple[str, ...]
    correct: np.ndarray
    chance: float

    @property
    def accuracy(self) -> Estimate:
        return stats.rate(self.correct)

    def by_task(self) -> dict[str, Estimate]:
        tasks = np.array(self.tasks)
        return {t: stats.rate(self.correct[tasks == t]) for t in dict.fromkeys(self.tasks)}


def choices(model: ChatModel, limit: int | None = None) -> Choices:
    """Multiple choice by log-probability of each option per token, without a chat template.

    Args:
        model: the model, with whatever hooks the caller has set.
        limit: items, taken evenly over the sub-tests; None for all.
    """
    items = _spread(shipped("choices"), limit)
    contexts, options = [], []
    for item in items:
        question = item["question"]
        context = f"Question: {question}\nAnswer:" if question.endswith("?") else question
        contexts += [context] * len(item["options"])
        options += [" " + o for o in item["options"]]
    score = -losses(model, model.text_rows(contexts, options)).per_token
    ends = np.cumsum([len(i["options"]) for i in items])
    picked = [int(np.argmax(s)) for s in np.split(score, ends[:-1])]
    correct = np.array([p == i["answer"] for p, i in zip(picked, items, strict=True)])
    return Choices(tuple(i["task"] for i in items), correct, float(np.mean([1 / len(i["options"]) for i in items])))


def _spread(rows: list[dict], limit: int | None) -> list[dict]:
    """At most `limit` rows, evenly over the file, so that every sub-test and genre is there."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in np.linspace(0, len(rows) - 1, limit).round().astype(int)]


def decision_log_probs(model: ChatModel, prompts: Sequence[str | Prompt]) -> Float[Tensor, "prompt vocab"]:
    """Log-probabilities of the first response token."""
    return row_log_probs(model, model.rows(prompts))


@torch.inference_mode()
def row_log_probs(model: ChatModel, rows: Sequence[Row]) -> Float[Tensor, "row vocab"]:
    """Log-probabilities of the token after each row."""
    out = None
    batches = model.batches(rows)
    for chosen, batch in batches:
        with batches.room():
            found = model.logits(batch)[:, -1].float().log_softmax(-1)
            out = found.new_empty(len(rows), found.shape[-1]) if out is None else out
            out[chosen] = found
    return out


@torch.inference_mode()
def stored_log_probs(model: ChatModel, rows: Sequence[Row]) -> StoredRows:
    """As `row_log_probs`, for any number of rows: a vocabulary of numbers each would not stay in memory."""
    out = StoredRows(len(rows), model.device)
    batches = model.batches(rows)
    for chosen, batch in batches:
        with batches.room():
            out[chosen] = model.logits(batch)[:, -1].float().log_softmax(-1)
    return out


def kl(
    reference: Float[Tensor, "prompt vocab"], changed: Float[Tensor, "prompt vocab"]
) -> Float[np.ndarray, " prompt"]:
    """KL(reference || changed) per prompt in nats, from log-probabilities."""
    p, q = reference.double(), changed.double()
    return (p.exp() * (p - q)).sum(-1).cpu().numpy()
