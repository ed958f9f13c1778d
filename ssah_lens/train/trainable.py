"""What an optimizer is given: the trainable entries alone, so that its state scales with the trainable share.

A parameter of which only some rows or columns are trained is gathered into a small tensor of its own. Gradients are
gathered the moment autograd has them (the whole gradient is dropped at once), the optimizer steps the small tensor, and
its values are scattered back. Frozen entries are never written. Weights of less than float32 get a float32 master copy:
in bfloat16 a step under 1/256 of a weight would be rounded away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.train.freeze import FrozenSlices, Slice, complement

Policy = Literal["blocks", "all"]
"""What training may move beside what is frozen: 'blocks' the matrices and biases of attention and MLP, with embeddings,
norms and unembedding held; 'all' every parameter. The paper does not say which; ours is 'blocks' unless told otherwise.
A frozen unit holds its own biases under either."""


class Part:
    """The trainable entries of one parameter.

    Attributes:
        parameter: the model's own.
        chosen: which entries; None for all of them.
        tensor: what the optimizer steps: the parameter itself where that is the same thing, else a copy.
    """

    def __init__(self, parameter: nn.Parameter, chosen: Slice | None = None) -> None:
        self.parameter, self.chosen = parameter, chosen
        low = parameter.dtype in (torch.bfloat16, torch.float16)
        if chosen is None and not low:
            self.tensor: Tensor = parameter
        else:
            values = parameter.detach().clone() if chosen is None else chosen.values
            self.tensor = (values.float() if low else values).requires_grad_()

    @property
    def values(self) -> Tensor:
        """What the optimizer sees, detached."""
        return self.tensor.detach()

    def take_gradient(self, parameter: nn.Parameter) -> None:
        """Adds the parameter's gradient to the tensor's, and frees it."""
        grad = parameter.grad
        if self.chosen is not None:
            grad = grad.index_select(self.chosen.dim, self.chosen.index)
        grad = grad.to(self.tensor.dtype)
        self.tensor.grad = grad if self.tensor.grad is None else self.tensor.grad.add_(grad)
        parameter.grad = None

    @torch.no_grad()
    def write(self) -> None:
        """Puts the tensor's values into the model; no other entry is touched."""
        if self.tensor is self.parameter:
            return
        values = self.tensor.to(self.parameter.dtype)
        if self.chosen is None:
            self.parameter.copy_(values)
        else:
            self.parameter.index_copy_(self.chosen.dim, self.chosen.index, values)


def trainable_parts(model: ChatModel, frozen: FrozenSlices | None = None, policy: Policy = "blocks") -> list[Part]:
    """What training may move.

    Args:
        model: the model.
        frozen: what it may not.
        policy: which parameters are meant at all.

    Raises:
        BadInput: an unknown policy, or nothing is left to train.
    """
    check_policy(policy)
    meant = model.anatomy.parameters if policy == "blocks" else list(model.plain.parameters())
    rest = complement(meant, frozen.slices if frozen else [])
    if not rest:
        raise BadInput("every parameter is frozen: nothing would be trained; freeze fewer roles or layers")
    return [Part(s.parameter, None if s.numel == s.parameter.numel() else s) for s in rest]


def check_policy(name: str) -> Policy:
    """The policy of this name; raises BadInput for an unknown one, before any model is loaded."""
    for policy in get_args(Policy):
        if policy == name:
            return policy
    raise BadInput(f"no policy '{name}': allowed are {', '.join(get_args(Policy))}")


@contextmanager
def only_trainable(plain: nn.Module, parts: Sequence[Part]) -> Iterator[None]:
    """Inside, these parts alone collect gradients and the model is in training mode; afterwards no trace is left."""
    parameters = {*plain.parameters(), *(part.parameter for part in parts)}
    before = [(p, p.requires_grad) for p in parameters]
    mine = {part.parameter for part in parts}
    for p in parameters:
        p.requires_grad_(p in mine)
        p.grad = None
    hooks = [
        part.parameter.register_post_accumulate_grad_hook(part.take_gradient)
        for part in parts
        if part.tensor is not part.parameter
    ]
    plain.train()
    try:
        yield
    finally:
        plain.eval()
        for hook in hooks:
            hook.remove()
        for p, flag in before:
            p.grad = None
            p.requires_grad_(flag)
