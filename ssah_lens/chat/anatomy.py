"""Where a model keeps the matrices that units own.

A unit owns entries of several parameters (METHOD.md section 3). Families lay them out differently: apart (Llama), fused
one after another (Phi-3, GPT-2) or interleaved by head (GPT-NeoX). A `Piece` describes any of these, so that nothing
else in the package needs to know the family. A layout that is not known is refused with the reason, never run wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from ssah_lens.errors import BadInput
from ssah_lens.units import Kind, UnitGrid


@dataclass(frozen=True)
class Piece:
    """What every unit of a kind owns in one parameter: `size` entries along `dim`, from `offset + unit * step`.

    Attributes:
        parameter: shared with the model.
        dim: 0 for rows (or a bias's entries), 1 for columns.
        size: entries per unit.
        offset: where unit 0 begins.
        step: from one unit to the next; `size` when they lie side by side.
    """

    parameter: nn.Parameter
    dim: int
    size: int = 1
    offset: int = 0
    step: int = 0

    def index(self, units: np.ndarray) -> np.ndarray:
        """Entries along `dim` that these units own."""
        starts = self.offset + units * (self.step or self.size)
        return (starts[:, None] + np.arange(self.size)).ravel()

    @property
    def per_unit(self) -> int:
        """Parameters that one unit owns here."""
        return self.size * self.parameter.numel() // self.parameter.shape[self.dim]


@dataclass(frozen=True)
class Block:
    """One layer.

    Attributes:
        module: the decoder block.
        attention, mlp: its two halves.
        o, down: their second matrices; the inputs of these are the units' activations. A mixture of experts has no
            one `down`: None.
        matrices: all linear modules of both halves; of the attention alone where the MLP is a mixture of experts.
        neurons, heads, groups: what neurons, query heads and key-value groups own.
        experts: parameters of experts and router, which belong to no unit.
    """

    module: nn.Module
    attention: nn.Module
    mlp: nn.Module
    o: nn.Module
    down: nn.Module | None
    matrices: tuple[nn.Module, ...]
    neurons: tuple[Piece, ...]
    heads: tuple[Piece, ...]
    groups: tuple[Piece, ...]
    experts: tuple[nn.Parameter, ...] = ()

    def output_weight(self, kind: Kind) -> Float[Tensor, "d_model channel"]:
        """The second matrix with units as columns, whichever way the family stores it; of neurons where there are."""
        matrix = self.down if kind is Kind.MLP and self.down is not None else self.o
        weight = matrix.weight
        return weight if isinstance(self.o, nn.Linear) else weight.T


@dataclass(frozen=True)
class Anatomy:
    """The blocks of a plain transformers model and its sizes.

    Attributes:
        blocks: in order.
        final_norm: what stands between the last block and the unembedding.
        d_mlp: neurons per block; 0 in a mixture of experts.
        n_experts: per block; 0 in a dense model.
    """

    blocks: tuple[Block, ...]
    final_norm: nn.Module
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    d_model: int
    n_experts: int = 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All weights and biases of the blocks' matrices: what training may move, and the denominator of shares."""
        of = lambda block: [*(p for m in block.matrices for p in m.parameters(recurse=False)), *block.experts]
        return [p for block in self.blocks for p in of(block)]

    def check_neurons(self) -> None:
        """Raises BadInput in a mixture of experts, whose neurons are no units here."""
        if self.n_experts:
            raise BadInput(
                f"the model is a mixture of {self.n_experts} experts, whose neurons are no units here: "
                "choose heads, or a whole site (resid, attn, mlp)"
            )

    @property
    def grid(self) -> UnitGrid:
        block = self.blocks[0]
        owned = lambda pieces: sum(p.per_unit for p in pieces)
        total = sum(p.numel() for p in self.parameters)
        return UnitGrid(len(self.blocks), self.d_mlp, self.n_heads, owned(block.neurons), owned(block.heads), total)


# ---- families


@dataclass(frozen=True)
class _Shape:
    n_heads: int
    n_groups: int
    d_head: int
    d_mlp: int


def _separate(attention: nn.Module, mlp: nn.Module, s: _Shape) -> Iterator[tuple[str, nn.Module, Piece]]:
    """Llama, Mistral, Qwen2, Qwen3, Gemma, OLMo-2, StableLM: seven matrices, each of its own."""
    for name in ("gate_proj", "up_proj"):
        yield from _rows("neuron", getattr(mlp, name))
    yield from _rows("head", attention.q_proj, s.d_head)
    for name in ("k_proj", "v_proj"):
        yield from _rows("group", getattr(attention, name), s.d_head)


def _fused(attention: nn.Module, mlp: nn.Module, s: _Shape) -> Iterator[tuple[str, nn.Module, Piece]]:
    """Phi-3: gate above up, q above k above v."""
    for offset in (0, s.d_mlp):
        yield from _rows("neuron", mlp.gate_up_proj, offset=offset)
    q, k = s.n_heads * s.d_head, s.n_groups * s.d_head
    for owner, offset in (("head", 0), ("group", q), ("group", q + k)):
        yield from _rows(owner, attention.qkv_proj, s.d_head, offset)


def _gpt2(attention: nn.Module, mlp: nn.Module, s: _Shape) -> Iterator[tuple[str, nn.Module, Piece]]:
    """GPT-2: no gate; q, k and v side by side; `Conv1D` stores matrices transposed."""
    yield from _rows("neuron", mlp.c_fc)
    for owner, offset in (("head", 0), ("group", 1), ("group", 2)):
        yield from _rows(owner, attention.c_attn, s.d_head, offset * s.n_heads * s.d_head)


def _neox(attention: nn.Module, mlp: nn.Module, s: _Shape) -> Iterator[tuple[str, nn.Module, Piece]]:
    """GPT-NeoX: no gate; q, k and v of a head together, head after head."""
    yield from _rows("neuron", mlp.dense_h_to_4h)
    for owner, offset in (("head", 0), ("group", 1), ("group", 2)):
        yield from _rows(owner, attention.query_key_value, s.d_head, offset * s.d_head, 3 * s.d_head)


def _experts(attention: nn.Module, mlp: nn.Module, s: _Shape) -> Iterator[tuple[str, nn.Module, Piece]]:
    """Mixtral, Qwen2-MoE, Qwen3-MoE: attention as in Llama; expert neurons are no units (no hook point shows them)."""
    yield from _rows("head", attention.q_proj, s.d_head)
    for name in ("k_proj", "v_proj"):
        yield from _rows("group", getattr(attention, name), s.d_head)


@dataclass(frozen=True)
class _Family:
    """Names of a block's halves and matrices; `pieces` yields (owner, module, piece) of the first matrices.

    `down` is None for a mixture of experts.
    """

    attention: str
    mlp: str
    o: str
    down: str | None
    inner: tuple[str, ...]
    pieces: Callable[[nn.Module, nn.Module, _Shape], Iterator[tuple[str, nn.Module, Piece]]]


FAMILIES = (
    _Family(
        "self_attn", "mlp", "o_proj", "down_proj", ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), _separate
    ),
    _Family("self_attn", "mlp", "o_proj", "down_proj", ("qkv_proj", "gate_up_proj"), _fused),
    _Family("attn", "mlp", "c_proj", "c_proj", ("c_attn", "c_fc"), _gpt2),
    _Family("attention", "mlp", "dense", "dense_4h_to_h", ("query_key_value", "dense_h_to_4h"), _neox),
    _Family("self_attn", "mlp", "o_proj", None, ("q_proj", "k_proj", "v_proj"), _experts),
)
SUPPORTED = (
    "Llama, Mistral, Qwen2, Qwen3, Gemma-2, Gemma-3, Phi-3, GPT-2, GPT-NeoX, OLMo-2, StableLM and their like, "
    "and the heads of Mixtral, Qwen2-MoE, Qwen3-MoE and their like"
)


def anatomy(plain: nn.Module) -> Anatomy:
    """Reads the anatomy of a plain (not bridged) transformers causal language model.

    Raises:
        BadInput: an architecture whose units cannot be told apart (experts, unknown layouts).
    """
    name = type(plain).__name__
    decoder = plain.get_decoder() if hasattr(plain, "get_decoder") else plain
    layers = _first(decoder, "layers", "h")
    final_norm = _first(decoder, "norm", "ln_f", "final_layer_norm")
    if layers is None or final_norm is None:
        raise BadInput(f"{name} has no list of decoder layers with a final norm: supported are {SUPPORTED}")
    config = plain.config.get_text_config()
    n_experts = _first(config, "num_local_experts", "num_experts", "n_routed_experts") or 0
    family = _family(name, layers[0], n_experts)
    n_heads = config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    n_groups = getattr(config, "num_key_value_heads", None) or n_heads
    d_mlp = _inputs(getattr(getattr(layers[0], family.mlp), family.down)) if family.down else 0
    shape = _Shape(n_heads, n_groups, d_head, d_mlp)
    blocks = tuple(_block(name, i, layer, family, shape) for i, layer in enumerate(layers))
    return Anatomy(blocks, final_norm, n_heads, n_groups, d_head, d_mlp, config.hidden_size, n_experts)


def _family(name: str, layer: nn.Module, n_experts: int) -> _Family:
    for family in FAMILIES:
        if (family.down is None) == bool(n_experts) and _has_all(layer, family):
            return family
    halves = {n: [c for c, _ in m.named_children()] for n, m in layer.named_children() if any(m.children())}
    raise BadInput(f"{name} has blocks of an unknown layout ({halves}): supported are {SUPPORTED}")


def _has_all(layer: nn.Module, family: _Family) -> bool:
    attention, mlp = getattr(layer, family.attention, None), getattr(layer, family.mlp, None)
    inner = all(hasattr(attention, n) or hasattr(mlp, n) for n in family.inner)
    if family.down is None:  # of a mixture of experts some layers may be dense
        fits = (hasattr(mlp, "experts") and hasattr(mlp, "gate")) or hasattr(mlp, "down_proj")
    else:
        fits = hasattr(mlp, family.down)
    return inner and hasattr(attention, family.o) and fits


def _block(name: str, number: int, layer: nn.Module, family: _Family, s: _Shape) -> Block:
    if not _has_all(layer, family):
        raise BadInput(f"{name} layer {number} is laid out unlike layer 0: supported are {SUPPORTED}")
    attention, mlp = getattr(layer, family.attention), getattr(layer, family.mlp)
    o, down = getattr(attention, family.o), getattr(mlp, family.down) if family.down else None
    owned: dict[str, list[Piece]] = {"neuron": [], "head": [], "group": []}
    modules: dict[int, nn.Module] = {}
    for owner, module, piece in family.pieces(attention, mlp, s):
        owned[owner].append(piece)
        modules[id(module)] = module
    if down is not None:
        owned["neuron"].append(_columns(down))
    owned["head"].append(_columns(o, s.d_head))
    _check_sizes(name, number, owned, s)
    matrices = (*modules.values(), o, *([down] if down is not None else []))
    experts = () if down is not None else tuple(mlp.parameters())
    neurons, heads, groups = (tuple(owned[owner]) for owner in ("neuron", "head", "group"))
    return Block(layer, attention, mlp, o, down, matrices, neurons, heads, groups, experts)


def _check_sizes(name: str, number: int, owned: dict[str, list[Piece]], s: _Shape) -> None:
    """Every entry of the units' matrices belongs to exactly one unit or group, or the layout is another one.

    It finds, say, an output gate beside the queries, or layers of unequal width.
    """
    count = {"neuron": s.d_mlp, "head": s.n_heads, "group": s.n_groups}
    taken: dict[tuple[nn.Parameter, int], list[np.ndarray]] = {}
    for owner, pieces in owned.items():
        for piece in pieces:
            taken.setdefault((piece.parameter, piece.dim), []).append(piece.index(np.arange(count[owner])))
    for (parameter, dim), parts in taken.items():
        index = np.sort(np.concatenate(parts))
        if not np.array_equal(index, np.arange(parameter.shape[dim])):
            raise BadInput(
                f"{name} layer {number} has a matrix of {parameter.shape[dim]} rows or columns where {s.n_heads} heads "
                f"of {s.d_head}, {s.n_groups} key-value heads and {s.d_mlp} neurons need {len(index)}: "
                f"an unknown layout; supported are {SUPPORTED}"
            )


def _rows(
    owner: str, module: nn.Module, size: int = 1, offset: int = 0, step: int = 0
) -> Iterator[tuple[str, nn.Module, Piece]]:
    """Pieces of a first matrix (units are its outputs) and of its bias."""
    dim = 0 if isinstance(module, nn.Linear) else 1
    yield owner, module, Piece(module.weight, dim, size, offset, step)
    if module.bias is not None:
        yield owner, module, Piece(module.bias, 0, size, offset, step)


def _columns(module: nn.Module, size: int = 1) -> Piece:
    """The piece of a second matrix (units are its inputs); its bias belongs to no unit."""
    return Piece(module.weight, 1 if isinstance(module, nn.Linear) else 0, size)


def _inputs(module: nn.Module) -> int:
    return module.weight.shape[1 if isinstance(module, nn.Linear) else 0]


def _first(owner: object, *names: str):
    return next((getattr(owner, n) for n in names if getattr(owner, n, None) is not None), None)
