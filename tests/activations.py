"""Activations of one unpadded row, read by a hook: what streamed and padded readings are compared with."""

from __future__ import annotations

import torch

from ssah_lens.chat.model import ChatModel


def states(model: ChatModel, row, name: str) -> torch.Tensor:
    """One activation of an unpadded row."""
    out = []
    with torch.no_grad(), model.bridge.hooks(fwd_hooks=[(name, lambda x, hook: out.append(x.clone()))]):
        model.logits(model.pad([row]))
    return out[0][0]
