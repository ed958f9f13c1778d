"""The bridged view of a model, and: are the two views one? Asked once, when it is made, of any architecture.

Ablating a unit through TransformerLens is only zeroing what the unit owns when the hook point shows exactly what the
owned matrix reads. That is looked at here in one short forward pass, layer by layer, so that an architecture that is
named like a known one and is another inside is refused, never run wrongly.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ssah_lens.chat.anatomy import SUPPORTED
from ssah_lens.errors import BadInput
from ssah_lens.units import Kind

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from ssah_lens.chat.model import ChatModel

TOLERANCE = 1e-3
"""Largest difference of a logit between the views in float32, in units of the logits' spread; seen are 1e-6."""


def check_bridge(plain: nn.Module) -> None:
    """Refuses, before any work, what TransformerLens has no view of.

    Raises:
        BadInput: an architecture that it does not know.
    """
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    name = type(plain).__name__
    if name not in SUPPORTED_ARCHITECTURES:
        raise BadInput(f"{name} is not known to TransformerLens: supported are {SUPPORTED}")


def bridged(plain: nn.Module, tokenizer, name: str) -> TransformerBridge:
    """A meta-device twin of the plain model that is given its own tensors, with hook points."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.model_registry.registry_io import resolve_model_alias

    with torch.device("meta"):
        twin = type(plain)(copy.deepcopy(plain.config))
    twin.config._attn_implementation = "eager"
    twin.load_state_dict(plain.state_dict(keep_vars=True), assign=True)
    twin.tie_weights()
    for path, buffer in plain.named_buffers():
        owner, _, leaf = path.rpartition(".")
        twin.get_submodule(owner)._buffers[leaf] = buffer
    # The bridge alters the tokenizer it is given, and loads another one by its name: a nameless copy is safe.
    theirs = copy.deepcopy(tokenizer)
    theirs.init_kwargs |= {"name_or_path": "", "add_bos_token": True}
    # The name is a label here; one that is an old alias of TransformerLens', as ours of Gemma is, draws a warning.
    label = resolve_model_alias(name) or name
    return TransformerBridge.boot_transformers(label, hf_model=twin.eval(), tokenizer=theirs)


@torch.no_grad()
def check_views(model: ChatModel, bridge: TransformerBridge) -> None:
    """Compares hook points with the inputs of the matrices they stand for, and the logits of both views.

    Raises:
        BadInput: they differ.
    """
    shown: dict[tuple[Kind, int], Tensor] = {}
    read: dict[tuple[Kind, int], Tensor] = {}
    places = [(kind, layer) for kind in model.grid.kinds for layer in range(model.grid.n_layers)]
    owners = _owners(model, bridge)
    handles = [
        owners[place].register_forward_pre_hook(lambda m, args, place=place: read.update({place: args[0]}))
        for place in places
    ]
    hooks = [
        (kind.hook(layer), lambda x, hook, place=(kind, layer): shown.update({place: x.flatten(2)}))
        for kind, layer in places
    ]
    batch = model.pad(model.rows(["a b"]))
    arguments = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False, "logits_to_keep": 1}
    try:
        with bridge.hooks(fwd_hooks=hooks):
            logits = bridge.original_model(**arguments).logits.float()
    except (ValueError, KeyError) as e:
        raise BadInput(f"TransformerLens cannot hook {type(model.plain).__name__}: {e}") from e
    finally:
        for handle in handles:
            handle.remove()
    for place in places:
        if place not in shown or place not in read or not _same(shown[place], read[place].view_as(shown[place])):
            raise BadInput(
                f"{type(model.plain).__name__}: '{place[0].hook(place[1])}' of TransformerLens does not show what the "
                "model's matrix reads, so its units cannot be told apart; this architecture is not supported"
            )
    plain = model.plain(**arguments).logits.float()
    low = model.plain.dtype != torch.float32
    if low and model.anatomy.n_experts:
        return  # a rounding may send a token to another expert
    if not plain.isfinite().all():
        return  # a broken model: what reads its numbers says so
    worst = float((logits - plain).abs().max() / plain.std().clamp(min=1e-6))
    if not worst <= TOLERANCE * (250 if low else 1):
        raise BadInput(
            f"{type(model.plain).__name__} gives other logits through TransformerLens (by {worst:.2g} of their "
            "spread); this architecture is not supported"
        )


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, NaN in the same places."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(0), b.nan_to_num(0))


def _owners(model: ChatModel, bridge: TransformerBridge) -> dict[tuple[Kind, int], nn.Module]:
    """The bridged view's own second matrices: the modules that hold the same weights."""
    by_weight = {}
    for module in bridge.original_model.modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            by_weight[weight.data_ptr()] = module
    out = {}
    for layer, block in enumerate(model.anatomy.blocks):
        for kind, owner in ((Kind.MLP, block.down), (Kind.HEAD, block.o)):
            if owner is not None:
                out[kind, layer] = by_weight[owner.weight.data_ptr()]
    return out
