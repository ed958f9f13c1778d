"""The residual stream after the instruction: every block's input, at the tokens that the template writes there.

They are the same tokens for every prompt, so whatever differs in their states was moved there from the prompt (Arditi
et al. 2024, arXiv 2406.11717). One forward pass per batch gives all layers and positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssah_lens.chat.batch import Position, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.errors import BadInput
from ssah_lens.intervene.sites import Site
from ssah_lens.measure.refusal import Refusals, ask, log_odds
from ssah_lens.progress import progress


@dataclass(frozen=True)
class States:
    """Block inputs at the post-instruction positions.

    Attributes:
        values: float32, on the CPU; the last position is the decision position. 4 bytes x layers x positions x d_model
            a prompt (0.4 MB for a 135M model, 1 MB for a 1.5B model).
        scores: refusal score (log-odds) of each prompt in the same pass.
        labels: text of the token at each position.
    """

    values: Float[Tensor, "prompt layer position d_model"]
    scores: Float[np.ndarray, " prompt"]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def where(self, rows: Bool[np.ndarray, " prompt"] | Int[np.ndarray, " row"]) -> States:
        """Some of the prompts."""
        return States(self.values[torch.as_tensor(rows)], self.scores[rows], self.labels)

    def joined(self, other: States) -> States:
        """These prompts, then those of `other`."""
        return States(torch.cat([self.values, other.values]), np.concatenate([self.scores, other.scores]), self.labels)


def n_positions(model: ChatModel) -> int:
    """How many tokens the template writes after the instruction (at least the decision position)."""
    _, positions = model.prompt_tokens("Hello")
    return max(1, sum(p == Position.POST_INSTRUCTION for p in positions))


@torch.no_grad()
def collect_states(
    model: ChatModel,
    prompts: Sequence[str | Prompt],
    tokens: Sequence[int],
    what: str = "states after the instruction",
) -> States:
    """Runs the prompts once and keeps the states of all layers.

    Args:
        model: the model, with whatever hooks the caller has set.
        prompts: user turns; a `Prompt` is read under its own system prompt.
        tokens: refusal-opening token ids, for the scores.
        what: label of the progress bar.
    """
    kept = _Kept(model, len(prompts), tokens)
    rows = model.rows(prompts)
    batches = model.batches(rows)
    for chosen, batch in progress(batches, what):
        with batches.room():
            if batch.ids.shape[1] < kept.n_pos:  # near twins share a prefix that reaches into the positions
                batch = model.pad([rows[i] for i in chosen])
            with kept.watching():
                logits = model.logits(batch)[:, -1]
            kept.take(chosen, logits)
    return kept.states(rows[0])


@torch.no_grad()
def collect_asked(
    model: ChatModel, sets: Sequence[PromptSet], tokens: Sequence[int], judge: str, max_new_tokens: int
) -> tuple[States, list[Refusals]]:
    """States of all prompts of the sets and what the model answers, in the passes of the generation.

    Args:
        model: the model, with whatever hooks the caller has set.
        sets: what to ask.
        tokens: refusal-opening token ids, for the scores.
        judge: which judge.
        max_new_tokens: length of a response.
    """
    prompts = [p for s in sets for p in s]
    kept, missed = _Kept(model, len(prompts), tokens), []

    def read(rows: list[int], logits: Tensor) -> None:
        if kept.n_pos <= kept.columns:
            kept.take(rows, logits)
        else:
            missed.extend(rows)

    with kept.watching():
        said = ask(model, sets, judge, max_new_tokens, at_decision=read)
    if missed:  # the same prompt twice: their shared prefix reached into the positions
        again = collect_states(model, [prompts[i] for i in missed], tokens)
        kept.values[missed], kept.scores[missed] = again.values, again.scores
    return kept.states(model.rows(prompts[:1])[0]), said


class _Kept:
    """States of the prompts while they are run: the last pass before the decision is the one with our positions."""

    def __init__(self, model: ChatModel, n: int, tokens: Sequence[int]) -> None:
        if not n:
            raise BadInput("states need at least one prompt")
        self.model, self.tokens, self.n_pos = model, tokens, n_positions(model)
        self.values = torch.empty(n, model.grid.n_layers, self.n_pos, model.anatomy.d_model)
        self.scores = np.empty(n)
        self._found: dict[int, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        def keep(layer: int):
            def hook(x: Tensor, hook) -> None:
                self._found[layer] = x[:, -self.n_pos :]

            return hook

        hooks = [(Site.RESID.hook(layer), keep(layer)) for layer in range(self.model.grid.n_layers)]
        with self.model.bridge.hooks(fwd_hooks=hooks):
            yield

    @property
    def columns(self) -> int:
        """Positions of the last pass, at most ours."""
        return self._found[0].shape[1]

    def take(self, rows: Sequence[int], logits: Float[Tensor, "batch vocab"]) -> None:
        """Copies the states of the pass that has just ended."""
        self.scores[rows] = log_odds(logits, self.tokens).cpu().numpy()
        layers = range(self.model.grid.n_layers)
        self.values[rows] = torch.stack([self._found[layer].detach().float().cpu() for layer in layers], 1)

    def states(self, row: Row) -> States:
        labels = tuple(self.model.tokenizer.decode([t]) for t in row.ids[-self.n_pos :])
        return States(self.values, self.scores, labels)
