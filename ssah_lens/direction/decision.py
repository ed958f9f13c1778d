"""Forward passes that end at the decision position, many times over the same prompts, at the price of one token each.

What is changed at the decision position changes nothing before it, so the keys and values of all earlier tokens are
run once and kept. This is what makes training a subspace (DAS) affordable on a CPU. Rows of unequal length are padded
on the left and masked, and the decision position is the last column of every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssah_lens.chat.model import ChatModel
from ssah_lens.direction.choice import Choice
from ssah_lens.intervene.sites import Site


class Decisions:
    """Class logits (refuse, fulfil) of some fixed prompts, by row number: the `task_logits` of TransformerLens.

    Attributes:
        states: input of every block at the decision position, [row, layer, d_model], float32 on the CPU.
        margins: of the undamaged model, [row]: positive = refuses.
    """

    def __init__(self, model: ChatModel, prompts: Sequence[str], choice: Choice) -> None:
        self.model, self.choice = model, choice
        self._rows = model.rows(prompts)
        self._keys: list[tuple[Tensor, Tensor]] | None = None
        self.states, self.margins = self._run_once()

    def recentre(self, border: float) -> None:
        """Moves the border of the choice to this refusal score."""
        self.margins = self.margins + self.choice.threshold - border
        self.choice = replace(self.choice, threshold=border)

    def __call__(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch 2"]:
        """One pass; every hook fires once, with the decision position in the last column. Gradients flow."""
        if self._keys is None:
            batch = self.model.pad([self._rows[i] for i in rows.tolist()])
            return self.choice.classes(self.model.logits(batch)[:, -1])
        from transformers import DynamicCache

        rows = rows.to(self._ids.device)
        cache = DynamicCache(config=self.model.plain.config)
        for layer, (keys, values) in enumerate(self._keys):
            cache.update(keys[rows], values[rows], layer)
        mask = self._mask[rows]
        logits = self.model.bridge.original_model(
            input_ids=self._ids[rows],
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return self.choice.classes(logits[:, -1])

    @torch.no_grad()
    def _run_once(self) -> tuple[Float[Tensor, "row layer d_model"], Float[np.ndarray, " row"]]:
        model, n_layers = self.model, self.model.grid.n_layers
        whole = model.pad(self._rows)
        states = torch.empty(len(self._rows), n_layers, model.anatomy.d_model)
        margins = np.empty(len(self._rows))
        # A layer with a window forgets tokens: its cache cannot be cut, so such a model runs whole rows every time.
        cached = not model.slides
        kept: list[list[tuple[Tensor, Tensor]]] = []
        for start in range(0, len(self._rows), PART):
            part = slice(start, start + PART)
            batch = model.pad(self._rows[part]) if not cached else None
            found: dict[int, Tensor] = {}
            hooks = [
                (
                    Site.RESID.hook(i),
                    lambda x, hook, i=i, found=found: found.__setitem__(i, x[:, -1].float().cpu().clone()),
                )
                for i in range(n_layers)
            ]
            with model.bridge.hooks(fwd_hooks=hooks):
                if batch is not None:
                    logits = model.logits(batch)
                else:
                    logits, cache = self._fill(whole.ids[part], whole.mask[part])
                    kept.append(cache)
            margins[part] = self.choice.margin(logits[:, -1]).cpu().numpy()
            states[part] = torch.stack([found[i] for i in range(n_layers)], 1)
        if cached:
            join = lambda parts: tuple(torch.cat(side) for side in zip(*parts, strict=True))
            self._keys = [join(layer) for layer in zip(*kept, strict=True)]
            self._ids, self._mask = whole.ids[:, -1:], whole.mask
        return states, margins

    def _fill(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Logits of the last position, and keys and values of all positions before it."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.plain.config)
        logits = self.model.bridge.original_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits, [(layer.keys[:, :, :-1].clone(), layer.values[:, :, :-1].clone()) for layer in cache.layers]


PART = 32
"""Rows run at once when the cache is filled."""
