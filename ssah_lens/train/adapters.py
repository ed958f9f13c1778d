"""Adapters through peft: LoRA, prefix tuning and LLaMA-Adapter.

An adapter is put into a twin of the plain model: modules of its own, the weights shared. The user's model therefore
keeps its shape whatever becomes of the adapter, and LoRA's merged weights are seen in it (and in its bridged view) at
once. Prefix tuning and LLaMA-Adapter cannot be merged: they stay a model of their own, measured without hooks, and are
saved as peft adapter folders.

LoRA: Hu et al. 2021 (arXiv 2106.09685). Prefix tuning: Li & Liang 2021 (arXiv 2101.00190). LLaMA-Adapter: Zhang et al.
2023 (arXiv 2303.16199), here as in its paper in all but the first two blocks.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import nn

from ssah_lens.chat.batch import Batch, Position, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.save import save_into, save_model
from ssah_lens.errors import BadInput

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

LORA, PREFIX, LLAMA_ADAPTER = "lora", "prefix", "llama-adapter"
UNTOUCHED_BLOCKS = 2
"""First blocks that LLaMA-Adapter leaves alone."""


@dataclass(frozen=True)
class AdapterSizes:
    """How large the adapters are: the field's common choices.

    Attributes:
        rank: of LoRA's updates, to every matrix of attention and MLP; scaled by 2.
        virtual_tokens: of prefix tuning, and of LLaMA-Adapter in each block.
    """

    rank: int = 8
    virtual_tokens: int = 10


class Adapted(ChatModel):
    """A chat model with an adapter: trained, measured and saved like any other, but not hooked.

    Attributes:
        base: the model it was made from, which shares its weights.
        peft: peft's own view, for saving.
        adapter_parameters: what is trained.
    """

    def __init__(self, base: ChatModel, twin: nn.Module, peft: PeftModel) -> None:
        # A ChatModel reads the anatomy of its plain model, which an adapter hides: the base's is the same.
        vars(self).update({k: v for k, v in vars(base).items() if k != "bridge"})
        self.base, self.plain, self.peft = base, twin, peft
        shared = {id(p) for p in base.plain.parameters()}
        self.adapter_parameters = [p for p in peft.parameters() if p.requires_grad and id(p) not in shared]

    @cached_property
    def bridge(self) -> _NoBridge:
        return _NoBridge(self.plain)

    def copy(self) -> NoReturn:
        raise BadInput(f"'{self.name}' carries an adapter and cannot be copied; copy the model before adding it")

    def save(self, folder: Path) -> Path:
        """Saves the adapter alone (safetensors) and the tokenizer; read it back with peft onto the same base model."""

        def write(partial: Path) -> None:
            self.peft.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)

        return save_into(folder, write)


class Prefixed(Adapted):
    """A chat model whose every sequence follows trained keys and values."""

    @property
    def _n_virtual(self) -> int:
        return self.peft.active_peft_config.num_virtual_tokens

    def pad(self, rows: Sequence[Row], share_prefix: bool = False) -> Batch:
        """The virtual tokens stand where a shared prefix would: run apart, never part of a row."""
        batch = super().pad(rows, share_prefix=False)
        virtual = Row([self.tokenizer.pad_token_id] * self._n_virtual, [int(Position.TEMPLATE)] * self._n_virtual)
        return Batch(batch.ids, batch.mask, batch.positions, virtual)

    def _run_prefix(self, model: nn.Module, batch: Batch):
        n = batch.ids.shape[0]
        ones = batch.mask.new_ones(n, self._n_virtual)
        return self.peft.get_prompt(batch_size=n), torch.cat([ones, batch.mask], 1)


class _NoBridge:
    """Stands where the bridged view would, to run the plain model; hooks are refused."""

    def __init__(self, plain: nn.Module) -> None:
        self.original_model = plain

    def __getattr__(self, name: str) -> NoReturn:
        raise BadInput(f"a model with an adapter has no TransformerLens view (asked for '{name}'): measure it unhooked")


def with_adapter(model: ChatModel, kind: str, sizes: AdapterSizes, seed: int = 0) -> Adapted:
    """A twin of the model with a fresh adapter; weights are shared, the model's own modules stay as they are.

    Args:
        model: the base.
        kind: 'lora', 'prefix' or 'llama-adapter'.
        sizes: how large.
        seed: of the adapter's first values; torch's generator is left as it was.

    Raises:
        BadInput: peft has no such adapter for this architecture.
    """
    from peft import get_peft_model

    architecture = model.plain.config.model_type
    if kind == LLAMA_ADAPTER and architecture not in ("llama", "mistral"):
        raise BadInput(f"peft's LLaMA-Adapter knows llama and mistral, not {architecture}; try lora or prefix")
    if kind == PREFIX and model.slides:
        raise BadInput(f"prefix tuning needs full attention in every block, {model.name} slides a window; try lora")
    shared = {id(t): t for t in (*model.plain.parameters(), *model.plain.buffers())}
    flags = [(p, p.requires_grad) for p in model.plain.parameters()]
    twin = copy.deepcopy(model.plain, shared)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft sets fan_in_fan_out for GPT-2 by itself, and says so
        torch.manual_seed(seed)
        peft = get_peft_model(twin, _config(model, kind, sizes))
    adapted = (Prefixed if kind == PREFIX else Adapted)(model, twin, peft)
    for p, flag in flags:  # peft held the shared weights: the base shall not notice
        p.requires_grad_(flag)
    return adapted


def merge(adapted: Adapted) -> ChatModel:
    """Adds LoRA's updates to the shared weights and gives back the base model, which has them now."""
    adapted.peft.merge_and_unload()
    return adapted.base


def save_tuned(model: ChatModel, folder: Path) -> Path:
    """Saves whole weights, or the adapter where it cannot be merged."""
    return model.save(folder) if isinstance(model, Adapted) else save_model(model, folder)


def _config(model: ChatModel, kind: str, sizes: AdapterSizes) -> PeftConfig:
    from peft import AdaptionPromptConfig, LoraConfig, PrefixTuningConfig

    if kind == LORA:
        return LoraConfig(
            task_type="CAUSAL_LM", r=sizes.rank, lora_alpha=2 * sizes.rank, target_modules=_matrix_names(model)
        )
    if kind == PREFIX:
        return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=sizes.virtual_tokens)
    blocks = max(1, model.grid.n_layers - UNTOUCHED_BLOCKS)
    return AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=sizes.virtual_tokens, adapter_layers=blocks)


def _matrix_names(model: ChatModel) -> list[str]:
    """Full names of the blocks' matrices; never the unembedding."""
    matrices = {id(m) for block in model.anatomy.blocks for m in block.matrices}
    return [name for name, m in model.plain.named_modules() if id(m) in matrices]
