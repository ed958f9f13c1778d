"""Which weights take gradients while something is measured; afterwards all is as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from ssah_lens.chat.model import ChatModel


@contextmanager
def gradients_of(model: ChatModel, wanted: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Only these parameters take gradients inside; with none, a backward pass to activations is a third cheaper."""
    ids = {id(p) for p in wanted}
    before = [(p, p.requires_grad) for p in model.plain.parameters()]
    for p, _ in before:
        p.requires_grad_(id(p) in ids)
    try:
        yield
    finally:
        for p, flag in before:
            p.requires_grad_(flag)
