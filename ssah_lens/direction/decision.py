"""Decisions of fixed prompts with the state at the decision position changed, at the price of one token and few blocks.

What is changed at the decision position of one block's input changes nothing before it, so one pass is remembered and
only the blocks above run again, for that one token (`intervene.replay`). This is what makes training a subspace (DAS)
affordable on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssah_lens.chat.batch import Batch
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.promptset import Prompt
from ssah_lens.direction.choice import Choice
from ssah_lens.intervene.replay import Replay

PART = 32
"""Most rows recorded at once; of each only the decision position and the keys and values before it are kept."""


class Decisions:
    """Class logits (refuse, fulfil) of some fixed prompts, by row number.

    Attributes:
        states: input of every block at the decision position, [row, layer, d_model], float32 on the CPU.
        margins: of the undamaged model, [row]: positive = refuses.
    """

    def __init__(self, model: ChatModel, prompts: Sequence[str | Prompt], choice: Choice) -> None:
        self.model, self.choice = model, choice
        self._replay = _joined(_recorded(model, model.pad(model.rows(prompts))))
        self.states = torch.stack([x[:, -1].float().cpu() for x in self._replay.resid[:-1]], 1)
        self.margins = choice.margin(self._replay.logits).cpu().numpy()

    def recentre(self, border: float) -> None:
        """Moves the border of the choice to this refusal score."""
        self.margins = self.margins + self.choice.threshold - border
        self.choice = replace(self.choice, threshold=border)

    def above(self, layer: int) -> Tail:
        """The model from this block's input on."""
        return Tail(self, layer)

    def rows(self, rows: Int[Tensor, " batch"], layer: int) -> Replay:
        """The remembered pass of some prompts, from a layer on."""
        return _rows(self._replay, rows, layer)


class Tail(nn.Module):
    """Blocks from one layer on, at the decision position: what TransformerLens' interchange tools take for a model.

    Its one hook point is the block's input, [row, d_model], whatever name is asked for.
    """

    def __init__(self, decisions: Decisions, layer: int) -> None:
        super().__init__()
        self.plain = decisions.model.plain  # a part of it, so that training a subspace leaves its weights alone
        self.decisions, self.layer = decisions, layer
        self._hook: Callable | None = None
        self.eval()

    @contextmanager
    def hooks(self, fwd_hooks: Sequence[tuple[str, Callable]]) -> Iterator[None]:
        ((_, self._hook),) = fwd_hooks
        try:
            yield
        finally:
            self._hook = None

    def forward(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch 2"]:
        """Class logits; the hook fires once. Gradients flow."""
        replay = self.decisions.rows(rows, self.layer)
        state = replay.resid[self.layer][:, -1]
        if self._hook is not None:
            changed = self._hook(state, hook=None)
            state = state if changed is None else changed
        final = replay.run(self.layer, state[:, None, None])[:, :, -1]
        return self.decisions.choice.classes(replay.logits_of(final)[:, 0])


def _recorded(model: ChatModel, whole: Batch) -> list[Replay]:
    """The passes over all rows, in their order; where memory runs out, over fewer rows at a time."""
    parts: list[Replay] = []
    start = 0
    while start < len(whole.ids):
        end = start + max(1, int(PART * model.room.share))
        batch = Batch(whole.ids[start:end], whole.mask[start:end], whole.positions[start:end])
        try:
            parts.append(_decision_only(Replay.record(model, batch)))
        except Exception as e:
            model.room.back_off(e)
        else:
            start = end
    return parts


def _decision_only(replay: Replay) -> Replay:
    """Lets go of what belongs to other positions, but for their keys and values."""
    attention = [replace(a, mask=None if a.mask is None else a.mask[:, :, -1:].clone()) for a in replay.attention]
    arguments = [replay._arguments(layer, 1, 1) for layer in range(len(attention))]
    return replace(replay, resid=[x[:, -1:].clone() for x in replay.resid], arguments=arguments, attention=attention)


def _rows(replay: Replay, rows: Int[Tensor, " batch"], layer: int) -> Replay:
    """Some rows, ready to be run from a layer on."""
    n, at = replay.n_rows, rows.to(replay.logits.device)
    some = lambda t: t[at] if t.shape[0] == n else t
    return _merged([replay], lambda tensors: some(tensors[0]), layer)


def _joined(parts: Sequence[Replay]) -> Replay:
    """One pass over the rows of all parts, which are padded to the same length."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        every = all(t.shape[0] == p.n_rows for t, p in zip(tensors, parts, strict=True))
        return torch.cat(list(tensors)) if every else tensors[0]

    return _merged(parts, join)


def _merged(parts: Sequence[Replay], change: Callable[[Sequence[Tensor]], Tensor], layer: int = 0) -> Replay:
    """Applies `change` to everything that is kept per row, from one layer on."""

    def each(values: Sequence[Any]) -> Any:
        if isinstance(values[0], Tensor):
            return change(values)
        return tuple(each(v) for v in zip(*values, strict=True)) if isinstance(values[0], tuple) else values[0]

    first = parts[0]
    resid, arguments, attention = list(first.resid), list(first.arguments), list(first.attention)
    for i in range(layer, len(attention)):
        resid[i] = each([p.resid[i] for p in parts])
        arguments[i] = {k: each([p.arguments[i][k] for p in parts]) for k in first.arguments[i]}
        of = lambda name, i=i: each([getattr(p.attention[i], name) for p in parts])
        attention[i] = replace(attention[i], keys=of("keys"), values=of("values"), mask=of("mask"))
    resid[-1] = each([p.resid[-1] for p in parts])
    logits = each([p.logits for p in parts])
    return replace(first, resid=resid, arguments=arguments, attention=attention, logits=logits)
