"""The two engines of a sweep: edits replayed from stored states, many at once, and the plain loop of hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssah_lens.chat.batch import Batch
from ssah_lens.chat.model import ChatModel
from ssah_lens.intervene.edits import Edits
from ssah_lens.intervene.fill import Fill, Given, replacement
from ssah_lens.intervene.metric import Metric
from ssah_lens.intervene.replay import Replay
from ssah_lens.intervene.room import layers_at_once
from ssah_lens.intervene.sites import Site, on_site

HEAD_ROWS = 512
"""Rows of logits made at a time when the metric reads the whole vocabulary."""
Found = Iterator[tuple[Int[np.ndarray, " part"], Float[np.ndarray, "part prompt"]]]


class Runner:
    """One batch of prompts; subclasses know how to run edits.

    Args:
        model, metric, fill: as for `sweep`.
        batch: prompts without a shared prefix.
        source: the rows that activations are taken from, row by row; None for other fills.
        last: positions that are edited, from the end; None for all.
        low: matrix products in bfloat16, where the engine can.
        prompts: which prompt of the sweep each row is.
        chunk_tokens: edited positions that run together.

    Attributes:
        clean: metric of the undamaged model, [prompt].
    """

    clean: Float[np.ndarray, " prompt"]

    def __init__(
        self,
        model: ChatModel,
        batch: Batch,
        metric: Metric,
        fill: Fill,
        source: Batch | None,
        last: int | None,
        low: bool,
        prompts: Sequence[int],
        chunk_tokens: int,
    ) -> None:
        self.model, self.batch, self.metric, self.fill, self.low = model, batch, metric, fill, low
        self.prompts = torch.tensor(prompts, device=model.device)
        self.n_rows, self.n_pos = batch.ids.shape
        self.last = self.n_pos if last is None else min(last, self.n_pos)
        self.chunk_tokens = chunk_tokens
        self.source = source
        self._given: Given | None = None

    def values(self, edits: Edits, todo: Int[np.ndarray, " todo"]) -> Found:
        """Runs some of the edits; yields which ones, and the metric under each of them."""
        raise NotImplementedError

    def window(self, edits: Edits) -> Bool[Tensor, "edit pos"]:
        """Which of the last positions each edit touches; as many columns as the widest needs."""
        if edits.window is None:
            return torch.ones(len(edits), self.last, dtype=torch.bool, device=self.model.device)
        n_pos = int(edits.reaches(self.last, self.n_pos).max())
        return torch.as_tensor(edits.window[:, -n_pos:], device=self.model.device)

    def replacement(self, site: Site, layer: int, n_pos: int) -> Float[Tensor, "batch pos channel"]:
        """What the whole site would be replaced by.

        Activations of the other run are kept: one pass of it gives as many of the next layers as memory allows.
        """
        if self.source is not None and (self._given is None or self._given.places[0][0] is not site):
            fits = layers_at_once(self.model, self.source.ids.numel() * site.width(self.model.anatomy))
            places = [(site, i) for i in range(self.model.grid.n_layers)]
            self._given = Given(self.model, self.source, places, fits)
        return replacement(self.model, self.fill, self.batch, self._given, site, layer, n_pos)


class Replayed(Runner):
    """Runs edits from stored states, many at once.

    In bfloat16 each chunk holds one edit that changes nothing, and effects are counted from it: what rounding does to
    all of them alike is no effect.

    Raises:
        CannotReplay: a model whose blocks cannot be run again on their own.
    """

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.replay = Replay.record(self.model, self.batch)
        self.clean = self.metric.of(self.replay.logits, self.prompts).double().cpu().numpy()

    @torch.inference_mode()
    def values(self, edits: Edits, todo: Int[np.ndarray, " todo"]) -> Found:
        reaches = edits.reaches(self.last, self.n_pos)
        todo = todo[np.argsort(-reaches[todo], kind="stable")]  # neighbours share a chunk: few positions run in vain
        at = 0
        while at < len(todo):
            chunk_tokens = int(self.chunk_tokens * self.model.room.share)
            part = todo[at : at + max(1, chunk_tokens // (self.n_rows * int(reaches[todo[at]])))]
            at += len(part)
            yield part, self._chunk(edits.of(part))

    def _chunk(self, edits: Edits) -> Float[np.ndarray, "edit prompt"]:
        window, units = self.window(edits), edits.units
        if self.low:
            window = torch.cat([window, torch.zeros_like(window[:1])])
            units = np.append(units, units[:1])
        n_edits, n_pos = window.shape
        put = self.replacement(edits.site, edits.layer, n_pos)
        replace = _replacer(self.model, edits.site, units, window, put)
        hidden = self.replay.resid[edits.layer][:, None, -n_pos:].expand(-1, n_edits, -1, -1)
        shape = hidden.shape[:3]
        handle = on_site(self.model, edits.site, edits.layer, lambda x: replace(x.view(*shape, -1)).view_as(x))
        try:
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.low):
                final = self.replay.run(edits.layer, hidden)
                found = self._read(final[:, :, -1])
        finally:
            handle.remove()
        return found[:-1] - found[-1] + self.clean if self.low else found

    def _read(self, final: Float[Tensor, "batch edit d_model"]) -> Float[np.ndarray, "edit prompt"]:
        flat = final.flatten(0, 1)
        prompts = self.prompts.repeat_interleave(final.shape[1])
        step = HEAD_ROWS if self.metric.columns is None else len(flat)
        out = [
            self.metric.of_columns(self.replay.logits_of(x[:, None], self.metric.columns)[:, 0], which)
            for x, which in zip(flat.split(step), prompts.split(step), strict=True)
        ]
        return torch.cat(out).double().view(final.shape[:2]).T.cpu().numpy()


class Looped(Runner):
    """Runs one forward pass with a TransformerLens hook per edit, in the model's own number format."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.clean = self._measured()

    @torch.inference_mode()
    def _measured(self) -> Float[np.ndarray, " prompt"]:
        return self.metric.of(self.model.logits(self.batch)[:, -1], self.prompts).double().cpu().numpy()

    def values(self, edits: Edits, todo: Int[np.ndarray, " todo"]) -> Found:
        for e in todo:
            part = np.array([e])
            one = edits.of(part)
            window = self.window(one)
            with torch.inference_mode():
                put = self.replacement(edits.site, edits.layer, window.shape[1])
            replace = _replacer(self.model, edits.site, one.units, window, put)

            def hook(x: Tensor, hook, replace=replace, n_pos=window.shape[1]) -> Tensor:
                flat = x.flatten(2)
                end = replace(flat[:, None, -n_pos:])[:, 0]
                return torch.cat([flat[:, :-n_pos], end], 1).view_as(x)

            with self.model.bridge.hooks(fwd_hooks=[(edits.site.hook(edits.layer), hook)]):
                found = self._measured()[None]
            yield part, found


def _replacer(
    model: ChatModel,
    site: Site,
    units: Int[np.ndarray, " edit"],
    window: Bool[Tensor, "edit pos"],
    put: Float[Tensor, "batch pos channel"],
) -> Callable[[Float[Tensor, "batch edit pos channel"]], Float[Tensor, "batch edit pos channel"]]:
    """Puts each edit's unit's channels in place, at that edit's positions."""
    width = site.width(model.anatomy) // site.units(model.anatomy)
    starts = torch.as_tensor(units, device=put.device, dtype=torch.long) * width
    channels = starts[:, None] + torch.arange(width, device=put.device)  # [edit, width]
    new = put[:, :, channels].transpose(1, 2)  # [batch, edit, pos, width]
    index = channels[None, :, None].expand_as(new)

    def replace(x: Tensor) -> Tensor:
        wanted = new.to(x.dtype)
        if not window.all():
            wanted = torch.where(window[None, :, :, None], wanted, x.gather(3, index))
        return x.scatter(3, index, wanted)

    return replace
