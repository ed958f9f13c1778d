"""What takes an activation's place in an intervention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ssah_lens.chat.batch import Batch, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.moments import Moments
from ssah_lens.intervene.sites import Site
from ssah_lens.units import Kind

MODES = ("zero", "mean", "resample", "patch")


@dataclass(frozen=True)
class Fill:
    """What takes the place of an activation.

    Attributes:
        mode: 'zero'; 'mean' of the position class; 'resample', the same unit on the next prompt of the batch; 'patch',
            the same unit in `source` (rows aligned at their ends).
        moments: the means, for 'mean'.
        source: one row per prompt, for 'patch'.
    """

    mode: str = "mean"
    moments: Moments | None = None
    source: Sequence[Row] | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise BadInput(f"no ablation mode '{self.mode}': allowed are {', '.join(MODES)}")
        if self.mode == "mean" and self.moments is None:
            raise BadInput("mean ablation needs activation moments; collect them, or use mode 'zero'")
        if self.mode == "patch" and self.source is None:
            raise BadInput("patching needs the rows to patch from")


def estimand(fill: Fill, last: int | None) -> str:
    """In words: what was replaced, and where."""
    where = {None: "all positions", 1: "the decision position"}.get(last, f"the last {last} positions")
    how = {"zero": "zero", "mean": "the mean of its position class", "resample": "its value on another prompt"}
    return f"{how.get(fill.mode, 'its value in the other run')} at {where}"


def replacement(
    model: ChatModel, fill: Fill, batch: Batch, source: Batch | None, site: Site, layer: int, n_pos: int
) -> Float[Tensor, "batch pos channel"]:
    """What a whole site of a layer would be replaced by, at the last positions of every row.

    Args:
        model: the model.
        fill: how to replace.
        batch: the rows that are edited.
        source: the rows whose activations are put in, for 'patch'.
        site, layer: where.
        n_pos: positions, from the end.
    """
    if fill.mode == "zero":
        return torch.zeros(len(batch.ids), n_pos, site.width(model.anatomy), device=model.device)
    if fill.mode == "mean" and fill.moments is not None:
        return _means(model, fill.moments, site, layer)[batch.positions[:, -n_pos:]]
    given = activations(model, source if fill.mode == "patch" else batch, site, [layer])[layer][:, -n_pos:]
    return given.roll(1, 0) if fill.mode == "resample" else given


def _means(model: ChatModel, moments: Moments, site: Site, layer: int) -> Float[Tensor, "position channel"]:
    if site not in (Site.NEURON, Site.HEAD):
        raise BadInput(f"means are kept for neurons and heads, not for site '{site}'; use zero, resample or patch")
    kind = Kind.MLP if site is Site.NEURON else Kind.HEAD
    return moments.means(kind)[layer].to(model.device, torch.float32)


@torch.inference_mode()
def activations(
    model: ChatModel, batch: Batch, site: Site, layers: Sequence[int]
) -> dict[int, Float[Tensor, "batch pos channel"]]:
    """A site's activations at these layers, in one clean run."""
    found: dict[int, Tensor] = {}
    keep = lambda x, hook, layer: found.update({layer: x.flatten(2).clone()})
    with model.bridge.hooks(fwd_hooks=[(site.hook(i), partial(keep, layer=i)) for i in layers]):
        model.logits(batch)
    return found
