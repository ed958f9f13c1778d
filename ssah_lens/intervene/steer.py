"""What we do along one direction of the residual stream while the model runs: project it out, or add a vector.

Directional ablation and activation addition as in Arditi et al. 2024 (arXiv 2406.11717): ablation takes a direction
out of every block's input and of what every attention and MLP writes; addition adds a vector to the input of one block.
Both act at every position and in every generation step, unless position classes are named. Hook functions return new
tensors.

Zero along a direction is not what a harmless prompt has there. Ablation can leave what it has on average instead: mean
ablation of a direction, the affine edit of Marshall, Scherlis and Belrose 2024 (arXiv 2411.09003).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from ssah_lens.chat.batch import Position, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.intervene.sites import Site
from ssah_lens.progress import progress

PROMPT = (Position.TEMPLATE, Position.INSTRUCTION, Position.POST_INSTRUCTION)
RESPONSE = (Position.RESPONSE,)
SITES = (Site.RESID, Site.ATTN, Site.MLP)


Means = Mapping[str, Float[Tensor, "position d_model"]]
"""Hook name -> mean activation per position class."""


@contextmanager
def projected_out(
    model: ChatModel,
    direction: Float[Tensor, " d_model"],
    where: Collection[Position] | None = None,
    towards: Means | None = None,
    layer: int | None = None,
    onward: bool = False,
) -> Iterator[None]:
    """Runs the model without a direction: what blocks read and write has the same component along it for every prompt.

    What a block's MLP reads has it too, but for families that norm what attention writes.

    Args:
        model: run it inside through `logits` and `generate`.
        direction: of any length but zero.
        where: position classes; everywhere when None.
        towards: the component that is left is that of these means (from `stream_means`); none is left when None.
        layer: only in the input of this block; in every block when None.
        onward: from that input on: also in all that this block and later ones write and read.
    """
    unit = (direction / direction.norm()).to(model.device, torch.float32)

    def to_level(level: Float[Tensor, " position"]) -> Callable[[Tensor], Tensor]:
        def change(x: Float[Tensor, "batch pos d_model"]) -> Tensor:
            return (level[model.positions_of(x.shape[1]).long()] - x.float() @ unit)[..., None] * unit

        return change

    def to_zero(x: Float[Tensor, "batch pos d_model"]) -> Tensor:
        return -(x.float() @ unit)[..., None] * unit

    change = lambda name: to_zero if towards is None else to_level(towards[name].to(unit) @ unit)
    places = _places(model) if layer is None else _places(model, layer) if onward else [Site.RESID.hook(layer)]
    hooks = [(name, _adding(model, change(name), where)) for name in places]
    with model.bridge.hooks(fwd_hooks=hooks):
        yield


@torch.no_grad()
def stream_means(model: ChatModel, rows: Sequence[Row], what: str = "means of the residual stream") -> Means:
    """The mean activation wherever `projected_out` acts, per position class; streamed in float64.

    A class that no row has gets the mean over all tokens.

    Args:
        model: the undamaged model.
        rows: prompts whose means are wanted, with responses.
        what: label of the progress bar.
    """
    n = len(Position)
    sums = {name: torch.zeros(n, model.anatomy.d_model, dtype=torch.float64) for name in _places(model)}
    count = torch.zeros(n, 1, dtype=torch.float64)
    batches = model.batches(rows, share_prefix=False)
    for _, batch in progress(batches, what):
        where = [(batch.positions == p) & (batch.mask == 1) for p in Position]
        found: dict[str, Tensor] = {}
        hooks = [(name, _summing(found, name, where)) for name in sums]
        with batches.room():
            with model.bridge.hooks(fwd_hooks=hooks):
                model.logits(batch)
            count += torch.tensor([[float(mask.sum())] for mask in where])
            for name, total in found.items():
                sums[name] += total
    mean = lambda s: torch.where(count > 0, s / count.clamp(min=1), s.sum(0) / count.sum())
    return {name: mean(s).float() for name, s in sums.items()}


def _summing(found: dict[str, Tensor], name: str, where: Sequence[Tensor]) -> Callable:
    """Writes the sums of one pass."""

    def hook(x: Float[Tensor, "batch pos d_model"], hook) -> None:
        found[name] = torch.stack([x[mask].double().sum(0) for mask in where]).cpu()

    return hook


def _places(model: ChatModel, first: int = 0) -> list[str]:
    """From the first block on, every block's input and what its attention and MLP write.

    Families that normalise what a block writes put the direction back after the last block: it is taken out there too.
    """
    last = model.grid.n_layers - 1
    return [site.hook(layer) for layer in range(first, last + 1) for site in SITES] + [f"blocks.{last}.hook_resid_post"]


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
