"""The residual stream after the instruction: every block's input, at the tokens that the template writes there.

They are the same tokens for every prompt, so whatever differs in their states was moved there from the prompt (Arditi
et al. 2024, arXiv 2406.11717). One forward pass per batch gives all layers and positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssah_lens.chat.batch import Position
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.sites import Site
from ssah_lens.measure.refusal import log_odds
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
    model: ChatModel, prompts: Sequence[str], tokens: Sequence[int], what: str = "states after the instruction"
) -> States:
    """Runs the prompts once and keeps the states of all layers.

    Args:
        model: the model, with whatever hooks the caller has set.
        prompts: user turns.
        tokens: refusal-opening token ids, for the scores.
        what: label of the progress bar.
    """
    if not prompts:
        raise BadInput("states need at least one prompt")
    n_pos, n_layers = n_positions(model), model.grid.n_layers
    values = torch.empty(len(prompts), n_layers, n_pos, model.anatomy.d_model)
    scores = np.empty(len(prompts))
    rows = model.rows(prompts)
    for chosen, batch in progress(list(model.batches(rows)), what):
        if batch.ids.shape[1] < n_pos:  # near twins share a prefix that reaches into the positions
            batch = model.pad([rows[i] for i in chosen])
        found: dict[int, Tensor] = {}

        # A shared prefix is run before the rest: the last call of a hook is the one with our positions.
        def keep(layer: int, found=found):
            def hook(x: Tensor, hook) -> None:
                found[layer] = x[:, -n_pos:].detach().float().cpu().clone()  # a view would keep all of x

            return hook

        hooks = [(Site.RESID.hook(layer), keep(layer)) for layer in range(n_layers)]
        with model.bridge.hooks(fwd_hooks=hooks):
            logits = model.logits(batch)[:, -1]
        scores[chosen] = log_odds(logits, tokens).cpu().numpy()
        values[chosen] = torch.stack([found[layer] for layer in range(n_layers)], 1)
    labels = tuple(model.tokenizer.decode([t]) for t in rows[0].ids[-n_pos:])
    return States(values, scores, labels)
