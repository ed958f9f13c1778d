"""What we do along one direction of the residual stream while the model runs: project it out, or add a vector.

Directional ablation and activation addition as in Arditi et al. 2024 (arXiv 2406.11717): ablation takes a direction
out of every block's input and of what every attention and MLP writes; addition adds a vector to the input of one block.
Both act at every position and in every generation step, unless position classes are named. Hook functions return new
tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from ssah_lens.chat.batch import Position
from ssah_lens.chat.model import ChatModel
from ssah_lens.intervene.sites import Site

PROMPT = (Position.TEMPLATE, Position.INSTRUCTION, Position.POST_INSTRUCTION)
RESPONSE = (Position.RESPONSE,)
SITES = (Site.RESID, Site.ATTN, Site.MLP)


@contextmanager
def projected_out(
    model: ChatModel, direction: Float[Tensor, " d_model"], where: Collection[Position] | None = None
) -> Iterator[None]:
    """Runs the model without a direction: nothing that any block reads or writes has a component along it.

    Args:
        model: run it inside through `logits` and `generate`.
        direction: of any length but zero.
        where: position classes; everywhere when None.
    """
    unit = (direction / direction.norm()).to(model.device, torch.float32)

    def remove(x: Float[Tensor, "batch pos d_model"]) -> Tensor:
        return -(x.float() @ unit)[..., None] * unit

    last = model.grid.n_layers - 1
    names = [site.hook(layer) for layer in range(last + 1) for site in SITES]
    # Families that normalise what a block writes put the direction back after the last block: take it out there too.
    names.append(f"blocks.{last}.hook_resid_post")
    with model.bridge.hooks(fwd_hooks=[(name, _adding(model, remove, where)) for name in names]):
        yield


@contextmanager
def added(
    model: ChatModel, layer: int, vector: Float[Tensor, " d_model"], where: Collection[Position] | None = None
) -> Iterator[None]:
    """Runs the model with a vector added to the input of one block.

    Args:
        model: run it inside through `logits` and `generate`.
        layer: which block.
        vector: what to add, in its own length.
        where: position classes; everywhere when None.
    """
    vector = vector.to(model.device, torch.float32)
    hook = _adding(model, lambda x: vector.expand(*x.shape[:2], -1), where)
    with model.bridge.hooks(fwd_hooks=[(Site.RESID.hook(layer), hook)]):
        yield


def _adding(model: ChatModel, change: Callable[[Tensor], Tensor], where: Collection[Position] | None) -> Callable:
    chosen = None if where is None else torch.tensor([int(p) for p in where], device=model.device)

    def hook(activation: Tensor, hook) -> Tensor:
        moved = change(activation)
        if chosen is not None:
            moved = moved * torch.isin(model.positions_of(activation.shape[1]), chosen)[..., None]
        return activation + moved.to(activation.dtype)

    return hook
