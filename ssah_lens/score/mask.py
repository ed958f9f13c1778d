"""A sparse gate per unit, learnt by gradient: which units must go for the model to fulfil what it refuses?

x' = g x + (1 - g) mean, g = sigmoid(logit). The gate learns to give the fulfilling answer to harmful prompts and the
same answer as before to harmless ones, and pays for every closed gate (Louizos et al. 2018, arXiv 1712.01312; De Cao
et al. 2020, arXiv 2004.14992; Cao et al. 2021, arXiv 2104.03514; ours is the deterministic gate, without their noise).
I_S is how far the gate closes. I_U is the same gate learnt with the goals swapped: lose the answers to harmless
prompts, keep the refusals. Chosen by optimisation, so held-out prompts and matched controls matter all the more.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssah_lens.chat.batch import Position, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.precision import has_bfloat16
from ssah_lens.errors import BadInput
from ssah_lens.intervene.gradients import gradients_of
from ssah_lens.intervene.hooks import fills, gated
from ssah_lens.measure.utility import response_nll
from ssah_lens.progress import progress
from ssah_lens.score.base import Calibration, PerUnit, Scores
from ssah_lens.units import Kind

OPEN = 4.0
"""Initial gate logit: sigmoid(4) = 0.98, near enough to open and not yet saturated."""
LR = 0.4
"""Adam's rate on gate logits: 10 steps of one sign bring a gate to one half."""
KEEP = 2.0
"""Weight of keeping what must stay, against 1 for losing what must go."""
PRICE = 40.0
"""Weight of the mean closed gate."""
LOST = 2.0
"""Nats per token by which an answer's loss must rise to count as lost."""
BATCH = 6
"""Prompts of each side per step."""


def mask(model: ChatModel, data: Calibration) -> Scores:
    """Learns the two gates and scores every unit by how far its gate has moved towards closed, in logits.

    Raises:
        BadInput: the model refuses too little to have safety data.
    """
    if not data.safety:
        raise BadInput(f"'{model.name}' hardly refuses anything, so there is no refusal to lose; align it, or use wifv")
    safety = _learn(model, data, data.fulfilling, data.utility, lambda nll: nll, "gate: refusals")
    base = _mean_nll(model, data.utility[: 2 * BATCH])
    utility = _learn(model, data, data.utility, data.safety, lambda nll: torch.relu(base + LOST - nll), "gate: answers")
    return Scores(safety, utility, signed=True)


def _learn(
    model: ChatModel,
    data: Calibration,
    change: list[Row],
    keep: list[Row],
    goal: Callable[[Tensor], Tensor],
    what: str,
) -> PerUnit:
    """Closes gates until `goal(nll of change)` is small while the nll of `keep` stays; OPEN minus the final logits."""
    logits = {
        k: torch.full((model.grid.n_layers, model.grid.width(k)), OPEN, device=model.device, requires_grad=True)
        for k in Kind
    }
    optimizer = torch.optim.Adam(logits.values(), lr=LR)
    fill = fills(model, data.moments, "mean")
    rng = np.random.default_rng(data.seed)
    with gradients_of(model):
        for _ in progress(range(data.steps), what):
            rows = [*_draw(change, rng), *_draw(keep, rng)]
            while True:
                optimizer.zero_grad()
                try:
                    _gradient(model, logits, fill, rows, min(BATCH, len(change)), goal)
                    break
                except Exception as e:
                    model.room.back_off(e)
            optimizer.step()
    return {k: (OPEN - v.detach()).double().cpu().numpy() for k, v in logits.items()}


def _gradient(
    model: ChatModel,
    logits: dict[Kind, Tensor],
    fill: dict[Kind, Tensor],
    rows: list[Row],
    n: int,
    goal: Callable[[Tensor], Tensor],
) -> None:
    """Of one step's loss; the first n rows are to be lost. In parts, and twice through, where memory is short."""
    gates = lambda: {k: torch.sigmoid(v) for k, v in logits.items()}
    closed = sum((1 - g).sum() for g in gates().values()) / model.grid.n_units
    parts = np.array_split(np.arange(len(rows)), min(len(rows), math.ceil(1 / model.room.share)))
    if len(parts) == 1:
        with gated(model, gates(), fill):
            losing, staying = _nll(model, rows, n)
        (goal(losing) + KEEP * staying + PRICE * closed).backward()
        return

    tokens = [sum(r.positions.count(Position.RESPONSE) for r in side) for side in (rows[:n], rows[n:])]

    def sums(part: np.ndarray) -> tuple[Tensor, Tensor]:
        with gated(model, gates(), fill):
            nll, row = _token_nll(model, [rows[i] for i in part])
        first = torch.as_tensor(part, device=row.device)[row] < n
        return nll[first].sum() / tokens[0], nll[~first].sum() / tokens[1]

    with torch.no_grad():  # the goal is read at the mean over all parts: its slope there comes first
        losing = torch.stack([sums(part)[0] for part in parts]).sum()
    losing.requires_grad_()
    (slope,) = torch.autograd.grad(goal(losing), losing)
    for part in parts:
        losing, staying = sums(part)
        (slope * losing + KEEP * staying).backward()
    (PRICE * closed).backward()


def _draw(rows: list[Row], rng: np.random.Generator) -> list[Row]:
    return [rows[i] for i in rng.choice(len(rows), min(BATCH, len(rows)), replace=False)]


def _nll(model: ChatModel, rows: list[Row], n: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean nats per response token of the first n rows and of the others, in one forward pass."""
    nll, row = _token_nll(model, rows)
    return nll[row < n].mean(), nll[row >= n].mean()


def _token_nll(model: ChatModel, rows: list[Row]) -> tuple[Float[Tensor, " token"], Int[Tensor, " token"]]:
    """Nats of every response token, and its row."""
    batch = model.pad(rows, share_prefix=True)
    # In bfloat16 the mask's float32 minimum rounds to -inf, and a padding token that sees nothing would be NaN.
    finite = [
        (f"blocks.{i}.attn.hook_attn_scores", lambda x, hook: x.clamp(min=torch.finfo(x.dtype).min))
        for i in range(model.grid.n_layers)
    ]
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=has_bfloat16(model.device))
    with autocast, model.bridge.hooks(fwd_hooks=finite):
        return response_nll(model.response_logits(batch), batch), batch.response_rows


@torch.no_grad()
def _mean_nll(model: ChatModel, rows: list[Row]) -> float:
    """Nats per response token."""
    total, n = 0.0, 0
    batches = model.batches(rows)
    for chosen, _ in batches:
        with batches.room():
            nll, _ = _token_nll(model, [rows[i] for i in chosen])
            total, n = total + float(nll.sum()), n + len(nll)
    return total / n
