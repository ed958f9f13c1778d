"""Where an intervention acts: five sites per layer, named as TransformerLens names them.

The same site is reached in two ways: through the bridge's hook points (`hook`), and through torch hooks on the plain
model's modules (`owner`). `intervene/sweep.py` uses the second, its reference loop the first, and the tests hold them
to one number.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ssah_lens.chat.anatomy import Anatomy, Block
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.units import Kind


class Site(StrEnum):
    """Which activation of a layer."""

    RESID = "resid"
    """Input of the block, the residual stream (`hook_resid_pre`)."""
    ATTN = "attn"
    """Output of the attention's second matrix (`attn.hook_out`)."""
    MLP = "mlp"
    """Output of the MLP's second matrix (`mlp.hook_out`)."""
    HEAD = "head"
    """Output of each head before the second matrix (`attn.hook_z`)."""
    NEURON = "neuron"
    """Activation of each neuron (`mlp.hook_post`)."""

    @classmethod
    def of(cls, kind: Kind) -> Site:
        """Where units of this kind act."""
        return cls.NEURON if kind is Kind.MLP else cls.HEAD

    def hook(self, layer: int) -> str:
        """TransformerLens name."""
        return (
            f"blocks.{layer}."
            + {
                Site.RESID: "hook_resid_pre",
                Site.ATTN: "attn.hook_out",
                Site.MLP: "mlp.hook_out",
                Site.HEAD: "attn.hook_z",
                Site.NEURON: "mlp.hook_post",
            }[self]
        )

    @property
    def is_input(self) -> bool:
        """True when the site is what its module takes, False when it is what its module gives."""
        return self in (Site.RESID, Site.HEAD, Site.NEURON)

    def owner(self, block: Block) -> nn.Module:
        """The module of the plain model whose input or output the site is; a mixture of experts is one module."""
        return {
            Site.RESID: block.module,
            Site.ATTN: block.o,
            Site.MLP: block.mlp if block.down is None else block.down,
            Site.HEAD: block.o,
            Site.NEURON: block.down,
        }[self]

    def width(self, anatomy: Anatomy) -> int:
        """Channels of the whole site."""
        if self is Site.NEURON:
            return anatomy.d_mlp
        return anatomy.n_heads * anatomy.d_head if self is Site.HEAD else anatomy.d_model

    def units(self, anatomy: Anatomy) -> int:
        """Units of one layer: neurons, heads, or the one vector of the other sites."""
        if self is Site.NEURON:
            return anatomy.d_mlp
        return anatomy.n_heads if self is Site.HEAD else 1


def on_site(model: ChatModel, site: Site, layer: int, replace: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """A torch hook on the plain model that puts `replace(activation)` in the activation's place, until removed."""
    module = site.owner(model.anatomy.blocks[layer])
    if not site.is_input:
        return module.register_forward_hook(lambda m, args, out: replace(out))

    def hook(m: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (replace(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": replace(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def parse_site(name: str) -> Site:
    """The site of this name.

    Raises:
        BadInput: no such site.
    """
    if name not in list(Site):
        raise BadInput(f"no site '{name}': allowed are {', '.join(Site)}")
    return Site(name)
