"""The refusal direction, by the published selection (Arditi et al. 2024, arXiv 2406.11717, section 2.3 and appendix C).

1. Candidates: mean state over refused harmful prompts minus mean over answered harmless ones, at every block's input
   and every post-instruction position.
2. Each candidate is tried on validation prompts: `bypass` = refusal score of harmful prompts with it projected out,
   `induce` = refusal score of harmless prompts with it added at its layer, `kl` = KL on harmless prompts when it is
   projected out, all at the decision position.
3. The lowest bypass wins among those that induce refusal, have KL of at most 0.1 and lie below 0.8 of the depth.

The whole table is kept. Three choices of ours: KL is taken on the harmless prompts that the undamaged model is going to
answer, since on one that it is about to refuse a change is what ablation is for; how many lengths of the direction
must be added for a refusal is read off validation prompts (`STRENGTHS`), one length being the published dose; and so is
how it is taken out (`ablations`): the gentlest of three ways that does what the published one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.promptset import Prompt
from ssah_lens.direction.choice import Choice
from ssah_lens.direction.states import States
from ssah_lens.errors import BadInput
from ssah_lens.intervene.steer import Means, added, projected_out
from ssah_lens.measure.refusal import log_odds
from ssah_lens.measure.utility import decision_log_probs, kl
from ssah_lens.progress import progress
from ssah_lens.results import CandidateDirection, TriedAblation

MAX_KL = 0.1
"""As published: a direction whose loss changes harmless answers more than this is not only about refusing."""
MAX_DEPTH = 0.8
"""As published, share of the layers: later directions write the refusing token itself."""
ZERO, MEAN, MEAN_HERE = "zero", "mean", "mean at its block"
"""Ways to take a direction out, the published one first: nothing is left along it, or the mean over answered harmless
train prompts; in all that blocks read and write, or in the input of the one block that it comes from."""
SPARE = 0.05
"""A gentler way may leave so many more of the harmful prompts refused than the most thorough one."""
STRENGTHS = (1.0, 1.5, 2.0, 3.0)
"""Lengths of the direction that are tried for addition; more would leave the range that states of real prompts have."""
ENOUGH = 0.95
"""Share of validation prompts that an addition must make the model refuse; the smallest strength that does is taken."""

Ablation = Callable[..., AbstractContextManager[None]]


@dataclass(frozen=True)
class Extracted:
    """The chosen direction and how it was chosen.

    Attributes:
        vector: difference of means, in its own length.
        chosen: its row of the table.
        table: all candidates that were tried, by layer and position.
        relaxed: True when no candidate met the conditions and the best of the rest was taken.
        base_bypass, base_induce: mean refusal scores of the undamaged model on the same prompts.
        strength: lengths of `vector` to add for a refusal.
    """

    vector: Float[Tensor, " d_model"]
    chosen: CandidateDirection
    table: tuple[CandidateDirection, ...]
    relaxed: bool
    base_bypass: float
    base_induce: float
    strength: float


def differences(states: States, refusing: Bool[np.ndarray, " prompt"]) -> Float[Tensor, "layer position d_model"]:
    """Mean over the refusing prompts minus mean over the others, float64 inside.

    Raises:
        BadInput: one side is empty.
    """
    refusing = np.asarray(refusing, dtype=bool)
    if refusing.all() or not refusing.any():
        raise BadInput("a difference of means needs prompts on both sides")
    mean = lambda rows: states.values[torch.as_tensor(rows)].double().mean(0)
    return (mean(refusing) - mean(~refusing)).float()


def cells(
    separation: Float[np.ndarray, "layer position"], layer_step: int = 1, per_layer: int | None = None
) -> list[tuple[int, int]]:
    """Which candidates to try: below `MAX_DEPTH`, every `layer_step`-th layer, the positions that separate best.

    Args:
        separation: how well each cell tells the two sides apart on validation prompts.
        layer_step: 1 tries every layer.
        per_layer: positions a layer; all when None.

    Returns:
        (layer, position from the end) in order.
    """
    n_layers, n_pos = separation.shape
    top = max(1, int(np.ceil(MAX_DEPTH * n_layers)))
    layers = range(top - 1, -1, -layer_step)
    # A stable sort from the end: of equal positions the later one is tried.
    best = lambda layer: sorted(range(n_pos), key=lambda p: (-separation[layer, p], -p))[: per_layer or n_pos]
    return sorted((layer, p - n_pos) for layer in layers for p in best(layer))


def extract(
    model: ChatModel,
    candidates: Mapping[tuple[int, int], Float[Tensor, " d_model"]],
    harmful: Sequence[str | Prompt],
    harmless: Sequence[str | Prompt],
    choice: Choice,
) -> Extracted:
    """Tries the candidates on validation prompts and chooses one.

    Args:
        model: the model.
        candidates: (layer, position from the end) -> difference of means; which ones, `cells` says.
        harmful, harmless: validation prompts.
        choice: its threshold is what an induced refusal must exceed (published: 0).

    Raises:
        BadInput: no candidate, or all of length zero.
    """
    candidates = {cell: vector for cell, vector in candidates.items() if float(vector.norm()) > 0}
    if not candidates:
        raise BadInput("no candidate direction: the states of the two sides do not differ")
    texts, n = [*harmful, *harmless], len(harmful)
    base = decision_log_probs(model, texts)
    score = lambda log_probs: float(log_odds(log_probs, choice.tokens).mean())
    answered = choice.answers(base[n:])
    table = []
    for (layer, position), vector in progress(list(candidates.items()), "candidate directions"):
        with projected_out(model, vector):
            without = decision_log_probs(model, texts)
        with added(model, layer, vector):
            induce = score(decision_log_probs(model, harmless))
        bypass, divergence = score(without[:n]), float(kl(base[n:], without[n:])[answered].mean())
        allowed = induce > choice.threshold and divergence <= MAX_KL and layer < MAX_DEPTH * model.grid.n_layers
        table.append(CandidateDirection(layer, position, float(vector.norm()), bypass, induce, divergence, allowed))
    chosen, relaxed = choose(table, choice.threshold)
    vector = candidates[chosen.layer, chosen.position]
    dose = strength(model, chosen.layer, vector, harmless, choice)
    return Extracted(vector, chosen, tuple(table), relaxed, score(base[:n]), score(base[n:]), dose)


def ablation(model: ChatModel, name: str, layer: int, means: Means) -> Ablation:
    """A way to take directions of a block's input out, by its name: called with a direction and position classes.

    Args:
        model: the model.
        name: `ZERO`, `MEAN` or `MEAN_HERE`.
        layer: the block.
        means: of answered harmless train prompts (`stream_means`).
    """
    towards = None if name == ZERO else means
    only = layer if name == MEAN_HERE else None
    return lambda direction, where=None: projected_out(model, direction, where, towards, only)


def ablations(
    model: ChatModel,
    layer: int,
    vector: Float[Tensor, " d_model"],
    means: Means,
    harmful: Sequence[str | Prompt],
    harmless: Sequence[str | Prompt],
    choice: Choice,
) -> tuple[TriedAblation, ...]:
    """Every way to take the direction out, on validation prompts.

    Args:
        model: the model.
        layer: the block that the direction comes from.
        vector: the direction.
        means: of answered harmless train prompts (`stream_means`).
        harmful, harmless: validation prompts.
        choice: tells a refusal, and which harmless prompts the undamaged model answers.

    Returns:
        The one to take first: the lowest KL among those that leave at most `SPARE` more refused than any.
    """
    texts, n = [*harmful, *harmless], len(harmful)
    base = decision_log_probs(model, texts)
    answered = choice.answers(base[n:])

    def tried(name: str) -> TriedAblation:
        with ablation(model, name, layer, means)(vector):
            without = decision_log_probs(model, texts)
        scores = log_odds(without[:n], choice.tokens).cpu().numpy()
        divergence = float(kl(base[n:], without[n:])[answered].mean())
        return TriedAblation(name, float(choice.refuses(scores).mean()), float(scores.mean()), divergence)

    every = [tried(name) for name in (ZERO, MEAN, MEAN_HERE)]
    least = min(t.refused for t in every)
    return tuple(sorted(every, key=lambda t: (t.refused > least + SPARE, t.kl)))


def strength(
    model: ChatModel, layer: int, vector: Float[Tensor, " d_model"], harmless: Sequence[str | Prompt], choice: Choice
) -> float:
    """The smallest of `STRENGTHS` that makes the model refuse `ENOUGH` of the prompts; else the one that does most."""
    refused: dict[float, float] = {}
    for times in STRENGTHS:
        with added(model, layer, times * vector):
            scores = log_odds(decision_log_probs(model, harmless), choice.tokens).cpu().numpy()
        refused[times] = float(choice.refuses(scores).mean())
        if refused[times] >= ENOUGH:
            return times
    return max(refused, key=refused.__getitem__)


def choose(table: Sequence[CandidateDirection], threshold: float) -> tuple[CandidateDirection, bool]:
    """The allowed candidate with the lowest bypass; without any, of those that induce refusal; else of all.

    The bound on KL is dropped first: a direction that does nothing harms nothing, so keeping the bound instead would
    choose an idle one. What the chosen one harms is then seen in its KL.

    Args:
        table: candidates, all below `MAX_DEPTH` (as `cells` gives them).
        threshold: refusal score that an induced refusal exceeds.

    Returns:
        The candidate, and whether the conditions had to be relaxed.
    """
    allowed = [t for t in table if t.allowed]
    pool = allowed or [t for t in table if t.induce > threshold] or list(table)
    return min(pool, key=lambda t: t.bypass), not allowed


def random_like(vector: Float[Tensor, " d_model"], seed: int) -> Float[Tensor, " d_model"]:
    """A random direction of the same length: the control of everything that is done along `vector`."""
    drawn = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm() * vector.norm()
