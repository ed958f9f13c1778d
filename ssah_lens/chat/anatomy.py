"""Where a model keeps the matrices that units own.

Supported are decoder blocks with separate `q/k/v/o_proj` and `gate/up/down_proj` (Llama, Mistral, Qwen2, Qwen3,
Gemma, SmolLM and their like). Anything else is refused with the reason, never run wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssah_lens.errors import BadInput
from ssah_lens.units import UnitGrid

if TYPE_CHECKING:
    from torch import nn

_MLP = ("gate_proj", "up_proj", "down_proj")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Block:
    """One layer's linear modules. `q` has n_heads * d_head rows, `k` and `v` n_key_value_heads * d_head."""

    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear

    @property
    def modules(self) -> tuple[nn.Linear, ...]:
        return (self.gate, self.up, self.down, self.q, self.k, self.v, self.o)


@dataclass(frozen=True)
class Anatomy:
    """The blocks of a plain transformers model and its sizes."""

    blocks: tuple[Block, ...]
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    d_model: int

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All weights and biases of the blocks' matrices: what training may move, and the denominator of shares."""
        return [p for block in self.blocks for m in block.modules for p in m.parameters(recurse=False)]

    @property
    def grid(self) -> UnitGrid:
        block = self.blocks[0]
        rows = sum(1 for m in (block.gate, block.up) if m.bias is not None)
        mlp = 3 * self.d_model + rows
        head = self.d_head * (2 * self.d_model + (block.q.bias is not None))
        total = sum(p.numel() for p in self.parameters)
        return UnitGrid(len(self.blocks), self.d_mlp, self.n_heads, mlp, head, total)


def anatomy(plain: nn.Module) -> Anatomy:
    """Reads the anatomy of a plain (not bridged) transformers causal language model.

    Raises:
        BadInput: an architecture whose units cannot be told apart yet (fused or expert matrices).
    """
    layers = getattr(plain.get_decoder() if hasattr(plain, "get_decoder") else plain, "layers", None)
    name = type(plain).__name__
    if layers is None:
        raise BadInput(
            f"{name} has no list of decoder layers: supported are Llama, Mistral, Qwen2/3 and Gemma-like models"
        )
    blocks = []
    for i, layer in enumerate(layers):
        attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
        lacking = [n for owner, names in ((attention, _ATTENTION), (mlp, _MLP)) for n in names if not hasattr(owner, n)]
        if lacking:
            raise BadInput(
                f"{name} layer {i} has no {', '.join(lacking)}: supported are models with separate "
                f"{', '.join(_ATTENTION)} and {', '.join(_MLP)} (Llama, Mistral, Qwen2/3, Gemma)"
            )
        blocks.append(Block(*(getattr(mlp, n) for n in _MLP), *(getattr(attention, n) for n in _ATTENTION)))
    config = plain.config.get_text_config()
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    n_kv = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return Anatomy(
        tuple(blocks), config.num_attention_heads, n_kv, d_head, config.intermediate_size, config.hidden_size
    )
