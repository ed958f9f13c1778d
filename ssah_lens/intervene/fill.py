"""What takes an activation's place in an intervention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ssah_lens.chat.batch import Batch, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.edits import Edits
from ssah_lens.intervene.moments import Moments
from ssah_lens.intervene.sites import Site

MODES = ("zero", "mean", "resample", "patch")
Place = tuple[Site, int]
"""A site, and the layer."""


@dataclass(frozen=True)
class Fill:
    """What takes the place of an activation.

    Attributes:
        mode: 'zero'; 'mean' of the position class; 'resample', the same unit on another of the prompts; 'patch', the
            same unit in `source`. Rows are aligned at their ends; a donor of 'resample' that is shorter than what is
            edited is read again from its end.
        moments: the means, for 'mean'; those of whole sites must have been asked for (`collect(..., sites=...)`).
        source: one row per prompt, for 'patch'.
        seed: of the draw of donors, for 'resample'.
    """

    mode: str = "mean"
    moments: Moments | None = None
    source: Sequence[Row] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise BadInput(f"no ablation mode '{self.mode}': allowed are {', '.join(MODES)}")
        if self.mode == "mean" and self.moments is None:
            raise BadInput("mean ablation needs activation moments; collect them, or use mode 'zero'")
        if self.mode == "patch" and self.source is None:
            raise BadInput("patching needs the rows to patch from")

    def sources(self, rows: Sequence[Row], reach: int | None = None) -> list[Row] | None:
        """The row that each prompt's activations are taken from; None where they come from no run.

        Args:
            rows: all prompts, in the order of `source`.
            reach: positions from the end that are edited; None for all.

        Raises:
            BadInput: rows to patch from that are too few or too short, a prompt to resample that no other stands for.
        """
        if self.mode == "resample":
            return [rows[i] for i in donors(rows, self.seed)]
        if self.mode != "patch" or self.source is None:
            return None
        if len(self.source) != len(rows):
            raise BadInput(f"{len(rows)} prompts need as many rows to patch from: got {len(self.source)}")
        for i, (row, source) in enumerate(zip(rows, self.source, strict=True), 1):
            needed = len(row.ids) if reach is None else min(reach, len(row.ids))
            if len(source.ids) < needed:
                raise BadInput(
                    f"row {i} to patch from has {len(source.ids)} tokens, fewer than the {needed} positions to patch; "
                    "give token-aligned pairs, or patch fewer positions"
                )
        return list(self.source)


def donors(rows: Sequence[Row], seed: int) -> list[int]:
    """For each prompt another one of other tokens: by the seed and its place, however prompts are batched later.

    Raises:
        BadInput: a prompt without another one.
    """
    texts = [tuple(r.ids) for r in rows]
    out = []
    for i, text in enumerate(texts):
        others = [j for j, other in enumerate(texts) if other != text]
        if not others:
            raise BadInput("resampling takes activations of another prompt: give at least two different prompts")
        out.append(others[int(np.random.default_rng([seed, i]).integers(len(others)))])
    return out


def estimand(fill: Fill, last: int | None, edits: Sequence[Edits] = ()) -> str:
    """In words: what was replaced, and where.

    Args:
        fill: what took the activations' place.
        last: positions that are edited where an edit has no window of its own.
        edits: the interventions.
    """
    where = _where(last, [e.window for e in edits])
    how = {"zero": "zero", "mean": "the mean of its position class", "resample": "its value on another prompt"}
    return f"{how.get(fill.mode, 'its value in the other run')} at {where}"


def _where(last: int | None, windows: Sequence[np.ndarray | None]) -> str:
    """All the positions that windows choose, each named once."""
    names = [_last(last)] if None in [None if w is None else 0 for w in windows] or not windows else []
    chosen = [row for w in windows if w is not None for row in np.unique(w, axis=0)]
    if chosen and all(row.sum() == 1 for row in chosen) and len({int(row[::-1].argmax()) for row in chosen}) > 1:
        names.append("one position at a time")
    else:
        names += [_named(row) for row in chosen]
    names = list(dict.fromkeys(names))
    return " or ".join(names) if len(names) <= 2 else "chosen positions, other ones by edit"


def _named(row: Bool[np.ndarray, " pos"]) -> str:
    n = int(row.sum())
    if row[len(row) - n :].all():
        return _last(n) if n else "no position"
    return f"{n} chosen positions" if n > 1 else "one chosen position"


def _last(n: int | None) -> str:
    return {None: "all positions", 1: "the decision position"}.get(n, f"the last {n} positions")


def replacement(
    model: ChatModel, fill: Fill, batch: Batch, given: Given | None, site: Site, layer: int, n_pos: int
) -> Float[Tensor, "batch pos channel"]:
    """What a whole site of a layer would be replaced by, at the last positions of every row.

    Args:
        model: the model.
        fill: how to replace.
        batch: the rows that are edited.
        given: the run whose activations are put in, for 'patch' and 'resample'.
        site, layer: where.
        n_pos: positions, from the end.
    """
    if given is not None:
        return given.last(site, layer, n_pos)
    if fill.mode == "mean" and fill.moments is not None:
        means = fill.moments.means_at(site)[layer].to(model.device, torch.float32)
        return means[batch.positions[:, -n_pos:]]
    return torch.zeros(len(batch.ids), n_pos, site.width(model.anatomy), device=model.device)


class Given:
    """Another run, row by row: activations that are put in. What one pass of it shows of the next places is kept.

    Args:
        model: the model.
        batch: the rows, without a shared prefix.
        places: what will be asked for, in this order.
        at_once: how many of them one pass reads; all by default.
    """

    def __init__(self, model: ChatModel, batch: Batch, places: Sequence[Place], at_once: int | None = None) -> None:
        self.model, self.batch, self.places, self.at_once = model, batch, list(places), at_once or len(places)
        self._found: dict[Place, Tensor] = {}

    def last(self, site: Site, layer: int, n_pos: int) -> Float[Tensor, "batch pos channel"]:
        """The last positions of every row; one that is shorter is read again from its end."""
        if (site, layer) not in self._found:
            at = self.places.index((site, layer))
            self._found = activations(self.model, self.batch, self.places[at : at + self.at_once])
        found = self._found[site, layer]
        back = torch.arange(n_pos - 1, -1, -1, device=found.device) % self.batch.mask.sum(1, keepdim=True)
        return found.gather(1, (found.shape[1] - 1 - back)[..., None].expand(-1, -1, found.shape[2]))


@torch.inference_mode()
def activations(
    model: ChatModel, batch: Batch, places: Sequence[Place]
) -> dict[Place, Float[Tensor, "batch pos channel"]]:
    """Activations at these places, in one clean run."""
    found: dict[Place, Tensor] = {}
    keep = lambda x, hook, place: found.update({place: x.flatten(2).clone()})
    with model.bridge.hooks(fwd_hooks=[(site.hook(i), partial(keep, place=(site, i))) for site, i in places]):
        model.logits(batch)
    return found
