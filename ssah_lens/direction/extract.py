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
how it is taken out (`ablations`): the gentlest of four ways that does what the published one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

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
from ssah_lens.results import TO_MEAN, TO_MEAN_HERE, TO_MEAN_ONWARD, TO_ZERO, CandidateDirection, TriedAblation

MAX_KL = 0.1
"""As published: a direction whose loss changes harmless answers more than this is not only about refusing."""
MAX_DEPTH = 0.8
"""As published, share of the layers: later directions write the refusing token itself."""
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
        ablations: ways to take it out, the one to take first.
    """

    vector: Float[Tensor, " d_model"]
    chosen: CandidateDirection
    table: tuple[CandidateDirection, ...]
    relaxed: bool
    base_bypass: float
    base_induce: float
    strength: float
    ablations: tuple[TriedAblation, ...]


@dataclass(frozen=True)
class Trials:
    """Validation prompts on which ways to take a direction out are tried.

    Attributes:
        model: the model.
        harmful, harmless: validation prompts.
        choice: tells a refusal, and which harmless prompts the undamaged model answers.
    """

    model: ChatModel
    harmful: Sequence[str | Prompt]
    harmless: Sequence[str | Prompt]
    choice: Choice

    @cached_property
    def base(self) -> Float[Tensor, "prompt vocab"]:
        """Log-probabilities of the undamaged model at the decision position, harmful prompts first."""
        return decision_log_probs(self.model, [*self.harmful, *self.harmless])

    def without(self, name: str, change: AbstractContextManager[None]) -> TriedAblation:
        """What the model does inside `change`."""
        n, base = len(self.harmful), self.base  # read before anything is changed
        with change:
            found = decision_log_probs(self.model, [*self.harmful, *self.harmless])
        scores = log_odds(found[:n], self.choice.tokens).cpu().numpy()
        answered = self.choice.answers(base[n:])
        divergence = float(kl(base[n:], found[n:])[answered].mean())
        return TriedAblation(name, float(self.choice.refuses(scores).mean()), float(scores.mean()), divergence)

    def undamaged(self) -> tuple[float, float]:
        """Mean refusal scores of the harmful and of the harmless prompts."""
        scores, n = log_odds(self.base, self.choice.tokens), len(self.harmful)
        return float(scores[:n].mean()), float(scores[n:].mean())


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
    means: Means | None = None,
) -> Extracted:
    """Tries the candidates on validation prompts and chooses one.

    Args:
        model: the model.
        candidates: (layer, position from the end) -> difference of means; which ones, `cells` says.
        harmful, harmless: validation prompts.
        choice: its threshold is what an induced refusal must exceed (published: 0).
        means: of answered harmless train prompts (`stream_means`); without them only the published ablation is tried.

    Raises:
        BadInput: no candidate, or all of length zero.
    """
    candidates = {cell: vector for cell, vector in candidates.items() if float(vector.norm()) > 0}
    if not candidates:
        raise BadInput("no candidate direction: the states of the two sides do not differ")
    trials = Trials(model, harmful, harmless, choice)
    published, table = {}, []
    for (layer, position), vector in progress(list(candidates.items()), "candidate directions"):
        out = published[layer, position] = trials.without(TO_ZERO, projected_out(model, vector))
        with added(model, layer, vector):
            induce = float(log_odds(decision_log_probs(model, harmless), choice.tokens).mean())
        allowed = induce > choice.threshold and out.kl <= MAX_KL and layer < MAX_DEPTH * model.grid.n_layers
        table.append(CandidateDirection(layer, position, float(vector.norm()), out.bypass, induce, out.kl, allowed))
    chosen, relaxed = choose(table, choice.threshold)
    cell = chosen.layer, chosen.position
    vector, zeroed = candidates[cell], published[cell]
    ways = (zeroed,) if means is None else ablations(trials, chosen.layer, vector, means, zeroed)
    dose = strength(model, chosen.layer, vector, harmless, choice)
    return Extracted(vector, chosen, tuple(table), relaxed, *trials.undamaged(), dose, ways)


def ablation(model: ChatModel, name: str, layer: int, means: Means) -> Ablation:
    """A way to take directions of a block's input out, by its name: called with a direction and position classes.

    Args:
        model: the model.
        name: `TO_ZERO`, `TO_MEAN`, `TO_MEAN_ONWARD` or `TO_MEAN_HERE`.
        layer: the block.
        means: of answered harmless train prompts (`stream_means`).
    """
    towards = None if name == TO_ZERO else means
    first, onward = (layer if name in (TO_MEAN_ONWARD, TO_MEAN_HERE) else None), name == TO_MEAN_ONWARD
    return lambda direction, where=None: projected_out(model, direction, where, towards, first, onward)


def ablations(
    trials: Trials, layer: int, vector: Float[Tensor, " d_model"], means: Means, published: TriedAblation
) -> tuple[TriedAblation, ...]:
    """Every way to take the direction out.

    Args:
        trials: where they are tried.
        layer: the block that the direction comes from.
        vector: the direction.
        means: of answered harmless train prompts (`stream_means`).
        published: what `TO_ZERO` did there.

    Returns:
        The one to take first: the lowest KL among those that leave at most `SPARE` more refused than any.
    """
    tried = lambda name: trials.without(name, ablation(trials.model, name, layer, means)(vector))
    every = [published, *map(tried, (TO_MEAN, TO_MEAN_ONWARD, TO_MEAN_HERE))]
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
