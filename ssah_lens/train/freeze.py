"""Freezing: a set of units to the exact slices of parameters they own, and the proof that these kept their bits.

A zeroed gradient is not enough under AdamW (weight decay and old momentum still move the weight). Here a frozen entry
never comes into the optimizer's hands at all: `trainable.py` gives it the other entries only, so that no optimizer,
clipping or precision can move it. `FrozenSlices` hashes the frozen bits before and after.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ssah_lens.chat.anatomy import Anatomy
from ssah_lens.errors import BadInput
from ssah_lens.units import Kind, UnitSet


@dataclass(frozen=True)
class Slice:
    """Rows (`dim` 0) or columns (`dim` 1) of one parameter.

    Attributes:
        parameter: the parameter, shared with the model.
        dim: 0 for rows (or a bias's entries), 1 for columns.
        index: which ones.
    """

    parameter: nn.Parameter
    dim: int
    index: Tensor

    @property
    def values(self) -> Tensor:
        """A copy of the slice."""
        return self.parameter.detach().index_select(self.dim, self.index)

    @property
    def numel(self) -> int:
        return self.index.numel() * (self.parameter.numel() // self.parameter.shape[self.dim])


def owned_slices(anatomy: Anatomy, units: UnitSet) -> list[Slice]:
    """The parameter slices that freezing these units holds (METHOD.md section 3).

    A neuron owns its rows of gate and up (with biases) and its column of down; a head owns its rows of q (with bias)
    and its columns of o (`anatomy.Piece` says where a family keeps them). The k and v rows of a grouped-query group
    are held when any of its heads is in the set.
    """
    _check_shape(anatomy, units)
    return [s for layer, _ in enumerate(anatomy.blocks) for s in _slices(anatomy, layer, units, any_head=True)]


def other_slices(anatomy: Anatomy, units: UnitSet) -> list[Slice]:
    """All block parameters except those that training only these units may change.

    The k and v rows of a group are trainable only when all of its heads are in the set.
    """
    _check_shape(anatomy, units)
    layers = range(len(anatomy.blocks))
    return complement(
        anatomy.parameters, [s for layer in layers for s in _slices(anatomy, layer, units, any_head=False)]
    )


def layer_slices(anatomy: Anatomy, layers: range) -> list[Slice]:
    """Every parameter of these blocks, norms included: the 'safety layers' of Li et al. 2024 (arXiv 2408.17003).

    Raises:
        BadInput: no layers, or layers that the model does not have.
    """
    last = len(anatomy.blocks) - 1
    if not len(layers) or layers.start < 0 or layers[-1] > last:
        raise BadInput(f"layers {layers.start}-{layers.stop - 1} are not in the model; it has layers 0-{last}")
    return complement([p for layer in layers for p in anatomy.blocks[layer].module.parameters()], [])


def complement(parameters: Iterable[nn.Parameter], slices: Iterable[Slice]) -> list[Slice]:
    """What of these parameters the slices leave; a parameter that they cover is left out."""
    taken: dict[nn.Parameter, list[Slice]] = {}
    for s in slices:
        taken.setdefault(s.parameter, []).append(s)
    out = []
    for parameter in parameters:
        mine = taken.get(parameter, [])
        dim = mine[0].dim if mine else 0
        rest = torch.ones(parameter.shape[dim], dtype=torch.bool)
        for s in mine:
            rest[s.index.cpu()] = False
        if rest.any():
            out.append(Slice(parameter, dim, rest.nonzero().squeeze(1).to(parameter.device)))
    return out


def _check_shape(anatomy: Anatomy, units: UnitSet) -> None:
    if units.grid != anatomy.grid:
        raise BadInput("these units belong to a model of another shape")


def _slices(anatomy: Anatomy, layer: int, units: UnitSet, any_head: bool) -> Iterator[Slice]:
    block = anatomy.blocks[layer]
    heads = units.masks[Kind.HEAD][layer]
    by_group = heads.reshape(anatomy.n_key_value_heads, -1)
    owners = (
        (block.neurons, np.flatnonzero(units.masks[Kind.MLP][layer])),
        (block.heads, np.flatnonzero(heads)),
        (block.groups, np.flatnonzero(by_group.any(1) if any_head else by_group.all(1))),
    )
    for pieces, chosen in owners:
        for piece in pieces:
            if chosen.size:
                index = torch.as_tensor(piece.index(chosen), device=piece.parameter.device)
                yield Slice(piece.parameter, piece.dim, index)


@dataclass
class FrozenSlices:
    """Slices that training must not change, and the hash of the bits they had.

    Attributes:
        slices: what is held.
        sha256: of all their values, taken when this is made.
    """

    slices: list[Slice]
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        self.sha256 = digest(s.values for s in self.slices)

    @property
    def n_parameters(self) -> int:
        return sum(s.numel for s in self.slices)

    def unchanged(self) -> bool:
        """True when every frozen value has the bits it started with."""
        return digest(s.values for s in self.slices) == self.sha256


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the bytes: float comparison would call 0.0 and -0.0 equal and NaN unequal to itself."""
    out = hashlib.sha256()
    for t in tensors:
        out.update(t.detach().cpu().contiguous().view(torch.uint8).numpy())
    return out.hexdigest()
