"""Refuse or fulfil as a number at the decision position: which side the model's first token is on.

The refusal score (Arditi et al. 2024, arXiv 2406.11717) is the log-odds that the response opens with a refusal. Its
zero is not the border in every model: one whose refusals open in many ways refuses at a lower score. So the border is
read off the model's own responses to train prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ssah_lens.measure.refusal import log_odds


@dataclass(frozen=True)
class Choice:
    """Reads the choice off logits.

    Attributes:
        tokens: refusal-opening token ids.
        threshold: refusal score above which the model counts as refusing.
        agreement: balanced accuracy of that border against judged responses; None when it was not calibrated.
    """

    tokens: tuple[int, ...]
    threshold: float = 0.0
    agreement: float | None = None

    def margin(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
        """Refusal score minus the threshold: positive = refuses. float64; gradients flow."""
        return log_odds(logits, self.tokens) - self.threshold

    def classes(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch 2"]:
        """Two class logits, refuse (0) and fulfil (1), whose difference is the margin."""
        margin = self.margin(logits).float()
        return torch.stack([margin / 2, -margin / 2], -1)

    def refuses(self, scores: Float[np.ndarray, " prompt"]) -> Bool[np.ndarray, " prompt"]:
        """The choice from refusal scores."""
        return scores > self.threshold

    def answers(self, log_probs: Float[Tensor, "prompt vocab"]) -> Bool[np.ndarray, " prompt"]:
        """Harmless prompts that the model is going to answer, where a change is harm; all when it answers none."""
        answered = ~self.refuses(log_odds(log_probs, self.tokens).cpu().numpy())
        return answered if answered.any() else ~answered


def calibrated(tokens: Sequence[int], scores: Float[np.ndarray, " prompt"], refused: Bool[np.ndarray, " prompt"]):
    """The choice with the border that agrees best with judged responses (balanced accuracy; the widest gap on a tie).

    Args:
        tokens: refusal-opening token ids.
        scores: refusal scores of train prompts.
        refused: whether the response to each was judged a refusal; with one side only the border stays at 0.
    """
    tokens, refused = tuple(tokens), np.asarray(refused, dtype=bool)
    if refused.all() or not refused.any():
        return Choice(tokens)
    order = np.sort(np.unique(scores))
    borders = (order[1:] + order[:-1]) / 2 if len(order) > 1 else order
    gaps = np.diff(order) if len(order) > 1 else np.ones(1)
    above = scores[:, None] > borders
    balanced = (above[refused].mean(0) + (~above[~refused]).mean(0)) / 2
    best = max(range(len(borders)), key=lambda i: (balanced[i], gaps[i]))
    return Choice(tokens, float(borders[best]), float(balanced[best]))
