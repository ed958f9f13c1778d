"""Resample ablation: a unit's activation is replaced by what it is on some token of another prompt.

Unlike the mean it stays on the distribution of each unit (Chan et al. 2022, causal scrubbing; Miller et al. 2024, arXiv
2407.08734). A bank keeps the activations of some tokens of every position class; every token that runs draws one of its
own class, the same one for all units and layers, so that what replaces them belongs together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssah_lens.chat.batch import Position, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.progress import progress
from ssah_lens.units import Kind

TOKENS = 48
"""Tokens kept per position class: for 46,350 units 60 MB."""


@dataclass(frozen=True)
class Bank:
    """Activations of the same tokens in every layer.

    Attributes:
        values: per kind, [layer, position class, token, channel]; a head has `d_head` channels, a neuron one.
        seed: of the draws.
    """

    values: dict[Kind, Float[Tensor, "layer position token channel"]]
    seed: int = 0

    @classmethod
    @torch.no_grad()
    def collect(cls, model: ChatModel, rows: Sequence[Row], seed: int = 0, tokens: int = TOKENS) -> Bank:
        """Keeps random tokens of these rows, as many of every position class.

        Args:
            model: the model to be ablated.
            rows: prompts with responses, as the means of mean ablation are taken over.
            seed: of the choice and of later draws.
            tokens: kept per class; drawn with replacement where a class has fewer.

        Raises:
            BadInput: a position class that no row has.
        """
        wanted = _chosen(rows, seed, tokens)
        width = {Kind.MLP: model.grid.d_mlp, Kind.HEAD: model.grid.n_heads * model.anatomy.d_head}
        values = {k: torch.zeros(model.grid.n_layers, len(Position), tokens, width[k]) for k in Kind}
        batches = model.batches(rows, share_prefix=False)
        for chosen, batch in progress(batches, "activations to draw from"):
            n_pos = batch.ids.shape[1]
            here = [
                (p, slot, i, n_pos - len(rows[row].ids) + at)
                for i, row in enumerate(chosen)
                for p, slot, at in wanted.get(row, ())
            ]
            if not here:
                continue
            position, slot, row, at = (torch.tensor(x) for x in zip(*here, strict=True))

            def keep(kind: Kind, layer: int, position=position, slot=slot, row=row, at=at):
                def hook(activation: Tensor, hook) -> None:
                    values[kind][layer, position, slot] = activation.flatten(2)[row, at].float().cpu()

                return hook

            hooks = [(k.hook(layer), keep(k, layer)) for k in model.grid.kinds for layer in range(model.grid.n_layers)]
            with batches.room(), model.bridge.hooks(fwd_hooks=hooks):
                model.logits(batch)
        return cls(values, seed)

    def hook(self, model: ChatModel, kind: Kind, layer: int, chosen: Int[Tensor, " chosen"]) -> Callable[..., Tensor]:
        """Replaces these units of one layer, wherever the model runs."""
        values = self.values[kind][layer]
        by_unit = values if kind is Kind.MLP else values.unflatten(-1, (model.grid.n_heads, -1))
        source = by_unit[:, :, chosen.cpu()].to(model.device)
        draws = torch.Generator().manual_seed(self.seed)  # each hook draws once a pass: all layers draw the same

        def hook(activation: Tensor, hook) -> Tensor:
            positions = model.positions_of(activation.shape[1])
            token = torch.randint(source.shape[1], positions.shape, generator=draws).to(positions.device)
            return activation.index_copy(2, chosen, source[positions, token].to(activation.dtype))

        return hook


def _chosen(rows: Sequence[Row], seed: int, tokens: int) -> dict[int, list[tuple[int, int, int]]]:
    """Row -> (position class, slot in the bank, index of the token) of every token that is kept."""
    rng = np.random.default_rng(seed)
    out: dict[int, list[tuple[int, int, int]]] = {}
    for p in Position:
        every = [(i, at) for i, row in enumerate(rows) for at, q in enumerate(row.positions) if q == p]
        if not every:
            raise BadInput(f"resample ablation needs tokens of class {p.name.lower()}: no row has any")
        picks = rng.choice(len(every), tokens, replace=len(every) < tokens)
        for slot, pick in enumerate(picks):
            i, at = every[pick]
            out.setdefault(i, []).append((int(p), slot, at))
    return out
