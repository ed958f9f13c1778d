"""What we do to a model's units while it runs: gates and ablations, through TransformerLens hooks.

Every edit is `x' = g x + (1 - g) fill`: a gate g per unit (1 keeps the unit, 0 puts the fill in its place). Ablation is
the hard gate; the learnt gate of `score/mask.py` is the soft one. Hook functions return new tensors, and only the hooks
added here are taken away again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene import MODES
from ssah_lens.intervene.moments import Moments
from ssah_lens.intervene.resample import Bank
from ssah_lens.units import Kind, UnitSet


def check_mode(mode: str) -> None:
    """Raises BadInput when `mode` is no way to ablate."""
    if mode not in MODES:
        raise BadInput(f"no ablation mode '{mode}': allowed are {', '.join(MODES)}")


def fills(model: ChatModel, moments: Moments | None, mode: str) -> dict[Kind, Float[Tensor, "layer position channel"]]:
    """What takes a unit's place: zeros, or the mean activation of its position class.

    Args:
        model: the model to be edited.
        moments: activation statistics of the same model; needed for 'mean', not read for 'zero'.
        mode: 'mean' or 'zero'; what 'resample' puts there is no constant.
    """
    check_mode(mode)
    if mode == "resample":
        raise BadInput("resample ablation has no fixed fill: use `ablated` with a bank")
    if mode == "zero":
        grid, d_head = model.grid, model.anatomy.d_head
        width = {Kind.MLP: grid.d_mlp, Kind.HEAD: grid.n_heads * d_head}
        return {k: torch.zeros(grid.n_layers, 1, width[k], device=model.device) for k in Kind}
    if moments is None:
        raise BadInput("mean ablation needs activation moments; collect them, or use mode 'zero'")
    return {k: moments.means(k).to(model.device, torch.float32) for k in Kind}


@contextmanager
def gated(
    model: ChatModel,
    gates: Mapping[Kind, Float[Tensor, "layer unit"]],
    fill: Mapping[Kind, Float[Tensor, "layer position channel"]],
) -> Iterator[None]:
    """Runs the model with every unit multiplied by its gate and its fill by one minus it, at every position.

    Args:
        model: run it inside through `logits` and `generate`.
        gates: 1 keeps a unit, 0 replaces it; gradients flow into them.
        fill: what replaces it, per position class (one row serves all classes).
    """
    hooks = [
        (kind.hook(layer), _gate_hook(model, kind, gates[kind][layer], fill[kind][layer]))
        for kind in model.grid.kinds
        for layer in range(model.grid.n_layers)
    ]
    with model.bridge.hooks(fwd_hooks=hooks):
        yield


@contextmanager
def ablated(
    model: ChatModel,
    units: UnitSet,
    mode: str = "mean",
    moments: Moments | None = None,
    bank: Bank | None = None,
) -> Iterator[None]:
    """Runs the model without these units, at every position and every generation step.

    Args:
        model: run it inside through `logits` and `generate`.
        units: what to ablate.
        mode: 'mean' (the mean of the position class, our default), 'zero' or 'resample' (what the units are on a token
            of another prompt, of the same position class).
        moments: the means, for 'mean'.
        bank: the other prompts' activations, for 'resample'.
    """
    if units.grid != model.grid:
        raise BadInput("these units belong to a model of another shape")
    if mode == "resample" and bank is None:
        raise BadInput("resample ablation needs a bank of activations; collect one, or use mode 'mean'")
    fill = {} if mode == "resample" else fills(model, moments, mode)
    hooks = []
    for kind, mask in units.masks.items():
        for layer in map(int, np.flatnonzero(mask.any(1))):
            chosen = torch.as_tensor(np.flatnonzero(mask[layer]), device=model.device)
            if mode == "resample" and bank is not None:
                put = bank.hook(model, kind, layer, chosen)
            else:
                put = _ablate_hook(model, kind, chosen, fill[kind][layer])
            hooks.append((kind.hook(layer), put))
    with model.bridge.hooks(fwd_hooks=hooks):
        yield


def _ablate_hook(
    model: ChatModel, kind: Kind, chosen: Int[Tensor, " chosen"], fill: Float[Tensor, "position channel"]
) -> Callable[..., Tensor]:
    # The hard gate, touching the chosen units only: all others keep their bits, and few units cost little.
    def hook(activation: Tensor, hook) -> Tensor:
        by_unit = fill if kind is Kind.MLP else fill.unflatten(-1, activation.shape[-2:])
        put = by_unit[:, chosen].to(activation.dtype)
        put = put[model.positions_of(activation.shape[1])] if put.shape[0] > 1 else put[0]
        dim = 2  # [batch, pos, neuron] or [batch, pos, head, channel]
        return activation.index_copy(
            dim, chosen, put.expand(*activation.shape[:2], *put.shape[-(activation.ndim - 2) :])
        )

    return hook


def _gate_hook(
    model: ChatModel, kind: Kind, gate: Float[Tensor, " unit"], fill: Float[Tensor, "position channel"]
) -> Callable[..., Tensor]:
    def hook(activation: Tensor, hook) -> Tensor:
        put = fill[model.positions_of(activation.shape[1])] if fill.shape[0] > 1 else fill[0]
        g = gate.to(activation.dtype)
        if kind is Kind.HEAD:
            put, g = put.unflatten(-1, activation.shape[-2:]), g[:, None]
        # Exact at both ends: g = 1 leaves the activation, g = 0 leaves the fill.
        return activation * g + put.to(activation.dtype) * (1 - g)

    return hook
