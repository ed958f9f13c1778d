"""How much of a sweep runs at a time: as much as is quick, and never more than a share of the free memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ssah_lens.chat.batch import BATCH_TOKENS
from ssah_lens.chat.model import ChatModel

CHUNK_TOKENS = 2048
"""Edited positions per matrix product: enough for full speed, little enough to stay near the processor's caches."""
SHARE = 0.25
"""Of the free memory that recordings may take, and as much again for what runs on them."""
WIDE = 4
"""Copies of an MLP's width, and of a row of attention scores, that are alive at once in a block."""
NARROW = 8
"""The same for the residual stream and what has its width."""


@dataclass(frozen=True)
class Room:
    """How much runs at a time.

    Attributes:
        batch_tokens: padded tokens of the prompts that are recorded together.
        chunk_tokens: edited positions that run together.
    """

    batch_tokens: int = BATCH_TOKENS
    chunk_tokens: int = CHUNK_TOKENS


def room(model: ChatModel, longest: int) -> Room:
    """What fits beside the model.

    Args:
        model: loaded already.
        longest: tokens of the longest prompt; at least one prompt is recorded, at least one edit of it run.
    """
    a, size = model.anatomy, next(model.plain.parameters()).element_size()
    recorded = a.d_model + 2 * a.n_key_value_heads * a.d_head
    running = WIDE * (a.d_mlp + a.n_heads * longest) + NARROW * a.d_model
    fits = SHARE * free_bytes(model.device) / size
    return Room(
        min(BATCH_TOKENS, max(longest, int(fits / (len(a.blocks) * recorded)))),
        min(CHUNK_TOKENS, max(1, int(fits / running))),
    )


def layers_at_once(model: ChatModel, values: int) -> int:
    """How many layers' activations of this many values each may be kept together; at least one."""
    size = next(model.plain.parameters()).element_size()
    return max(1, int(SHARE * free_bytes(model.device) / (size * max(values, 1))))


def free_bytes(device: torch.device) -> int:
    """Memory that could be had now: of the accelerator, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
