"""Sufficiency: one model generates with some units' activations taken from another, at every token.

The donor reads the same tokens as the receiver, undamaged, one pass ahead; what its chosen units are on each token is
put in the place of the receiver's own (activation patching across models; Wang et al. 2023, Prakash et al. 2024, arXiv
2402.14811, 'cross-model activation patching'). Nothing else of the donor gets through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssah_lens.chat.batch import Batch
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import PromptSet
from ssah_lens.errors import BadInput
from ssah_lens.progress import progress
from ssah_lens.units import Kind, UnitSet

Place = tuple[Kind, int]


@torch.inference_mode()
def generate_with(
    receiver: ChatModel,
    donor: ChatModel,
    units: UnitSet,
    prompts: PromptSet,
    max_new_tokens: int,
    at_decision: Callable[[list[int], Float[Tensor, "batch vocab"]], None] | None = None,
    what: str = "generating with the other model's units",
) -> list[list[int]]:
    """Greedy responses of the receiver, as `ChatModel.generate` gives them; with no units they are its own.

    Args:
        receiver: generates.
        donor: of the same shape and vocabulary; its chosen activations replace the receiver's.
        units: which.
        prompts: what is asked.
        max_new_tokens: longest response.
        at_decision: called once per batch with its prompts' indices and the logits of the first new token.
        what: label of the progress bar.

    Raises:
        BadInput: models or units of different shape, or another vocabulary.
    """
    if not receiver.grid == donor.grid == units.grid:
        raise BadInput("units can only be moved between models of one shape")
    if receiver.tokenizer.get_vocab() != donor.tokenizer.get_vocab():
        raise BadInput(
            f"'{receiver.name}' and '{donor.name}' have different vocabularies: no token of one is the other's"
        )
    out: list[list[int]] = [[] for _ in prompts]
    rows = receiver.rows(prompts)
    for chosen, batch in progress(list(receiver.batches(rows, share_prefix=False)), what):
        for i, tokens in zip(
            chosen, _respond(receiver, donor, units, batch, chosen, max_new_tokens, at_decision), strict=True
        ):
            out[i] = tokens
    return out


def _respond(receiver, donor, units, batch: Batch, chosen, max_new_tokens: int, at_decision) -> list[list[int]]:
    from transformers import DynamicCache

    models = donor, receiver
    caches = [DynamicCache(config=m.plain.config) for m in models]
    ids, mask = batch.ids, batch.mask
    position = (mask.cumsum(1) - 1).clamp(min=0)
    said: list[list[int]] = [[] for _ in chosen]
    done = [False] * len(chosen)
    for step in range(max_new_tokens):
        with _moved(receiver, donor, units):
            for model, cache in zip(models, caches, strict=True):
                logits = model.bridge.original_model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=position,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]
        if step == 0 and at_decision is not None:
            at_decision(chosen, logits)
        ids = logits.argmax(-1, keepdim=True)
        for i, token in enumerate(ids[:, 0].tolist()):
            done[i] = done[i] or token in (receiver.turn_end, receiver.tokenizer.eos_token_id)
            if not done[i]:
                said[i].append(token)
        if all(done):
            break
        mask = torch.cat([mask, mask.new_ones(len(chosen), 1)], 1)
        position = position[:, -1:] + 1
    return said


@contextmanager
def _moved(receiver: ChatModel, donor: ChatModel, units: UnitSet) -> Iterator[None]:
    """Inside, a pass of the donor leaves its units' activations to the next pass of the receiver."""
    seen: dict[Place, Tensor] = {}

    def read(place: Place, index: Int[Tensor, " chosen"]):
        def hook(x: Tensor, hook) -> None:
            seen[place] = x.index_select(2, index)

        return hook

    def write(place: Place, index: Int[Tensor, " chosen"]):
        return lambda x, hook: x.index_copy(2, index, seen.pop(place).to(x.dtype))

    hooks: dict[Callable, list] = {read: [], write: []}
    for kind, kind_mask in units.masks.items():
        for layer in map(int, np.flatnonzero(kind_mask.any(1))):
            index = torch.as_tensor(np.flatnonzero(kind_mask[layer]), device=receiver.device)
            for make, found in hooks.items():
                found.append((kind.hook(layer), make((kind, layer), index)))
    with donor.bridge.hooks(fwd_hooks=hooks[read]), receiver.bridge.hooks(fwd_hooks=hooks[write]):
        yield
