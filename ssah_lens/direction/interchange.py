"""One dimension or several? Interchange on a subspace between prompts that the model refuses and prompts it answers.

The state of one prompt (base) at the decision position of one block's input is given the other prompt's (source)
coordinates inside a subspace; if the model then makes the source's choice, the decision is flipped. Bases: the
difference of means and the ridge probe (one dimension), DAS of rank 1, 2, 4, 8 (Geiger et al. 2024, arXiv 2303.02536).
An interchange accuracy is no evidence by itself (Arora et al. 2024, arXiv 2402.12560), so each rank stands beside
norm-matched random subspaces, DAS trained on arbitrary labels, and DAS trained in an untrained copy of the model.
Bases, intervention and training are TransformerLens' `tools.analysis.interchange`.

The block is the first at which giving the whole state flips nearly all decisions: there the choice has just arrived.
Later, every decision is one dimension, because the logits are read off there.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.promptset import Prompt, as_prompt
from ssah_lens.direction.choice import Choice
from ssah_lens.direction.decision import Decisions
from ssah_lens.direction.separability import fit
from ssah_lens.direction.states import States
from ssah_lens.errors import BadInput
from ssah_lens.intervene.sites import Site
from ssah_lens.progress import progress

ARRIVED = 0.9
"""Share of decisions that the whole state flips where the choice counts as arrived."""
MIN_PAIRS = 6
"""Pairs whose sides are decided differently; with fewer nothing is learnt and nothing measured."""
MEAN, PROBE, DAS, WHOLE = "difference of means", "probe", "DAS", "whole state"
RANDOM, ARBITRARY, UNTRAINED = "random subspace", "DAS, arbitrary labels", "DAS, untrained model"


BATCH = 64
"""Directed pairs run at once."""


@dataclass(frozen=True)
class Training:
    """How DAS is trained.

    Attributes:
        ranks: dimensions to try.
        epochs: passes over the train pairs, both ways.
        lr: Adam's.
        batch_size: directed pairs a step.
        controls: random subspaces a basis.
        every_control: train the controls of every rank, not only of the first and the last.
        layer_step: every how manieth block is looked at for where the choice arrives.
        seed: seed.
    """

    ranks: tuple[int, ...] = (1, 2, 4, 8)
    epochs: int = 12
    lr: float = 0.02
    batch_size: int = 24
    controls: int = 5
    every_control: bool = True
    layer_step: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Flipped:
    """One basis on the test pairs.

    Attributes:
        basis: its name.
        rank: dimensions.
        hits: whether each directed pair took the source's choice; all pairs to 'fulfil' first, then all to 'refuse'.
            Random subspaces: share of the draws. Arbitrary labels: whether each train pair took its arbitrary label,
            since only there can an arbitrary label be learnt: what the method's freedom alone reaches (chance: half).
        fit: share of its own train targets that a trained basis reaches; None for the others.
    """

    basis: str
    rank: int
    hits: Float[np.ndarray, " directed"]
    fit: float | None = None


@dataclass(frozen=True)
class Interchanged:
    """All bases at one block.

    Attributes:
        layer: whose input.
        arrived: False when the whole state nowhere flips `ARRIVED` of the decisions; then the best block was taken.
        n_train, n_test: pairs.
        layers: blocks that were looked at.
        whole, line: share of train pairs flipped there by the whole state and by the difference of means.
        flips: bases and controls on the test pairs.
        bases: direction of each one-dimensional basis, [d_model].
    """

    layer: int
    arrived: bool
    n_train: int
    n_test: int
    layers: tuple[int, ...]
    whole: Float[np.ndarray, " layer"]
    line: Float[np.ndarray, " layer"]
    flips: tuple[Flipped, ...]
    bases: dict[str, Float[Tensor, " d_model"]]


def interchange(
    model: ChatModel,
    train: tuple[Sequence[str | Prompt], Sequence[str | Prompt]],
    test: tuple[Sequence[str | Prompt], Sequence[str | Prompt]],
    choice: Choice,
    settings: Training,
) -> Interchanged:
    """Finds the block, fits the bases on train pairs and flips the test pairs.

    Args:
        model: the model.
        train, test: (refused prompts, answered prompts) of the same length; row i of one is the pair of row i of the
            other. Pairs that the model decides alike are left out.
        choice: how to read the decision.
        settings: how to train.

    Raises:
        BadInput: too few pairs that the model decides differently.
    """
    sides = [_Pairs.of(model, *pairs, choice) for pairs in (train, test)]
    for name, p in zip(("train", "test"), sides, strict=True):
        if p.n < MIN_PAIRS:
            raise BadInput(f"interchange needs {MIN_PAIRS} {name} pairs that the model decides differently; got {p.n}")
    train_pairs, test_pairs = sides
    layers = tuple(range(model.grid.n_layers - 1, -1, -settings.layer_step))[::-1]
    whole = _per_layer(train_pairs, layers, lambda layer: None)
    line = _per_layer(train_pairs, layers, lambda at: _mean_basis(train_pairs.states_of(at), train_pairs.refused))
    reached = np.flatnonzero(whole >= ARRIVED)
    layer = layers[int(reached[0]) if len(reached) else int(whole.argmax())]
    flips, bases = _bases(model, train_pairs, test_pairs, layer, settings)
    return Interchanged(
        layer, bool(len(reached)), train_pairs.n, test_pairs.n, layers, whole, line, tuple(flips), bases
    )


class _Pairs:
    """Prompts of some pairs, ready to run: rows 0..n-1 refused, n..2n-1 answered; directed pairs go both ways."""

    def __init__(
        self, decisions: Decisions, kept: Int[np.ndarray, " pair"], n_all: int, prompts: Sequence[str | Prompt]
    ) -> None:
        self.decisions, self.n = decisions, len(kept)
        refused, answered = torch.as_tensor(kept), torch.as_tensor(kept + n_all)
        self.base = torch.cat([refused, answered])
        self.source = torch.cat([answered, refused])
        self.targets = torch.cat([torch.ones(self.n), torch.zeros(self.n)]).long()  # 1 = fulfil, 0 = refuse
        self.sources = [prompts[i] for i in self.source.tolist()]

    @classmethod
    def of(
        cls, model: ChatModel, refused: Sequence[str | Prompt], answered: Sequence[str | Prompt], choice: Choice
    ) -> _Pairs:
        n = len(refused)
        if n != len(answered) or not n:
            raise BadInput(f"interchange needs pairs: got {n} and {len(answered)} prompts")
        prompts = [*refused, *answered]
        decisions = Decisions(model, prompts, choice)
        m = decisions.margins
        return cls(decisions, np.flatnonzero((m[:n] > 0) & (m[n:] <= 0)), n, prompts)

    @property
    def refused(self) -> Bool[np.ndarray, " directed"]:
        """Whether each base is refused."""
        return self.targets.numpy() == 1

    def states_of(self, layer: int) -> Float[Tensor, "directed d_model"]:
        return self.decisions.states[self.base, layer]

    def hits(self, layer: int, intervention) -> Bool[np.ndarray, " directed"]:
        """Which directed pairs end on the source's side."""
        from transformer_lens.tools.analysis.interchange import intervened_logits

        tail = self.decisions.above(layer)
        states = self.decisions.states[self.source, layer]
        logits = intervened_logits(
            tail, Site.RESID.hook(layer), intervention, self.base, states, tail, batch_size=BATCH
        )
        return (logits.argmax(-1) == self.targets).numpy()


def _per_layer(pairs: _Pairs, layers: Sequence[int], basis) -> Float[np.ndarray, " layer"]:
    from transformer_lens.tools.analysis.interchange import SubspaceInterchange

    out = []
    for layer in progress(layers, "interchange per layer"):
        found = basis(layer)
        swap = (lambda base, source: source) if found is None else SubspaceInterchange(found)
        out.append(pairs.hits(layer, swap).mean())
    return np.array(out)


def _bases(
    model: ChatModel, train: _Pairs, test: _Pairs, layer: int, settings: Training
) -> tuple[list[Flipped], dict[str, Tensor]]:
    from transformer_lens.tools.analysis.interchange import SubspaceInterchange, arbitrary_targets, probe_basis

    states = train.states_of(layer)
    flat = States(states[:, None, None], np.zeros(len(states)), ("",))
    weights = fit(flat, train.refused[:, None]).probe[0, 0].T
    fixed = {MEAN: _mean_basis(states, train.refused), PROBE: probe_basis(weights)}
    flips = [Flipped(WHOLE, model.anatomy.d_model, test.hits(layer, lambda base, source: source).astype(float))]
    for name, basis in fixed.items():
        flips.append(Flipped(name, 1, test.hits(layer, SubspaceInterchange(basis)).astype(float)))
    random_targets = arbitrary_targets([_key(p) for p in train.sources], 2, settings.seed)
    untrained = _Untrained.of(model, train, test, settings.seed)
    bases = {name: basis[:, 0] for name, basis in fixed.items()}
    for rank in progress([r for r in settings.ranks if r <= model.anatomy.d_model], "DAS"):
        das = _das(train, layer, train.targets, rank, settings)
        step = SubspaceInterchange(das)
        flips.append(Flipped(DAS, rank, test.hits(layer, step).astype(float), float(train.hits(layer, step).mean())))
        flips.append(Flipped(RANDOM, rank, _placebo(test, layer, step, rank, settings)))
        if rank == 1:
            bases[DAS] = das[:, 0]
        if rank not in (settings.ranks[0], settings.ranks[-1]) and not settings.every_control:
            continue
        arbitrary = SubspaceInterchange(_das(train, layer, random_targets, rank, settings))
        own = _predicted(train, layer, arbitrary) == random_targets.numpy()
        flips.append(Flipped(ARBITRARY, rank, own.astype(float), float(own.mean())))
        flips.append(untrained.flipped(layer, rank, settings))
    return flips, bases


def _mean_basis(states: Float[Tensor, "directed d_model"], refused: Bool[np.ndarray, " directed"]) -> Tensor:
    """The difference-of-means basis; a coordinate axis where the means are the same (block 0: the same token)."""
    from transformer_lens.tools.analysis.interchange import mean_difference_basis

    means = [states[torch.as_tensor(rows)].mean(0) for rows in (refused, ~refused)]
    if torch.allclose(*means, atol=1e-7):
        return torch.eye(states.shape[1])[:, :1]
    return mean_difference_basis(states, refused.tolist())


def _das(pairs: _Pairs, layer: int, targets: Tensor, rank: int, settings: Training) -> Float[Tensor, "d_model rank"]:
    from transformer_lens.tools.analysis.interchange import fit_das

    tail = pairs.decisions.above(layer)
    return fit_das(
        tail,
        Site.RESID.hook(layer),
        pairs.base,
        pairs.source,
        targets,
        tail,
        rank=rank,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=settings.seed,
    ).basis.cpu()


def _placebo(test: _Pairs, layer: int, step, rank: int, settings: Training) -> Float[np.ndarray, " directed"]:
    """Share of random subspaces, moved exactly as far as the learnt one, that flip each pair."""
    from transformer_lens.tools.analysis.interchange import NormMatchedPlacebo, random_basis

    d = test.decisions.states.shape[-1]
    draws = [
        test.hits(layer, NormMatchedPlacebo(step, random_basis(d, rank, settings.seed + i)))
        for i in range(settings.controls)
    ]
    return np.mean(draws, 0)


def _predicted(pairs: _Pairs, layer: int, intervention) -> Int[np.ndarray, " directed"]:
    hits = pairs.hits(layer, intervention)
    targets = pairs.targets.numpy()
    return np.where(hits, targets, 1 - targets)


class _Untrained:
    """The same pairs in a copy of the model with fresh weights.

    It prefers nothing, so its border lies at the median of its own train margins, and only directed pairs whose base is
    not on the source's side already can be flipped.
    """

    def __init__(self, train: _Pairs, test: _Pairs) -> None:
        self.train, self.test = train, test

    @classmethod
    def of(cls, model: ChatModel, train: _Pairs, test: _Pairs, seed: int) -> _Untrained:
        fresh = untrained(model, seed)
        choice = Choice(train.decisions.choice.tokens)
        out = []
        for pairs in (train, test):
            prompts, n = _prompts(pairs), pairs.n
            out.append(_Pairs(Decisions(fresh, prompts, choice), np.arange(n), n, prompts))
        border = float(np.median(out[0].decisions.margins))
        for pairs in out:
            pairs.decisions.recentre(border)
        return cls(*out)

    def flipped(self, layer: int, rank: int, settings: Training) -> Flipped:
        from transformer_lens.tools.analysis.interchange import SubspaceInterchange

        step = SubspaceInterchange(_das(self.train, layer, self.train.targets, rank, settings))
        refuses = self.test.decisions.margins[self.test.base.numpy()] > 0
        movable = refuses == (self.test.targets.numpy() == 1)
        hits = self.test.hits(layer, step)
        chosen = hits[movable] if movable.any() else hits
        return Flipped(UNTRAINED, rank, chosen.astype(float), float(self.train.hits(layer, step).mean()))


def _prompts(pairs: _Pairs) -> list[str | Prompt]:
    """Prompts of the kept pairs, refused ones first."""
    answered, refused = pairs.sources[: pairs.n], pairs.sources[pairs.n :]
    return [*refused, *answered]


def _key(prompt: str | Prompt) -> str | tuple[str, str]:
    """What tells a prompt from others: its text, and its system prompt where it has one."""
    p = as_prompt(prompt)
    return (p.system, p.text) if p.system else p.text


def untrained(model: ChatModel, seed: int) -> ChatModel:
    """A copy of the model with its architecture's own random initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        # Made in its own format at once: a large model would not fit beside a float32 copy.
        fresh = type(model.plain)._from_config(
            copy.deepcopy(model.plain.config), dtype=next(model.plain.parameters()).dtype
        )
    return ChatModel(fresh.to(model.device), model.tokenizer, f"{model.name} (untrained)")
