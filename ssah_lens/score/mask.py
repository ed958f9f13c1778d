"""A sparse gate per unit, learnt by gradient: which units must go for the model to fulfil what it refuses?

x' = g x + (1 - g) mean, g = sigmoid(logit). The gate learns to give the fulfilling answer to harmful prompts and the
same answer as before to harmless ones, and pays for every closed gate (Louizos et al. 2018, arXiv 1712.01312; De Cao
et al. 2020, arXiv 2004.14992; Cao et al. 2021, arXiv 2104.03514; ours is the deterministic gate, without their noise).
Where the tokens that open refusals are known, the log-odds of opening with one count as well: the choice is made there,
and the loss of a whole answer hardly sees it. I_S is how far the gate closes. I_U is the same gate learnt with the
goals swapped: lose the answers to harmless prompts, keep the refusals. Chosen by optimisation, so held-out prompts and
matched controls matter all the more.

A gate's way says nothing of redundancy: Adam takes steps of one length whatever the slope, the price opens the gates of
units that do nothing, and those that end where they began are the ones that both goals pull at. Redundant is who has
little slope in either goal (the price left out): the root mean square over the steps of d loss / d gate, which is to
first order what closing the gate would cost in one batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ssah_lens.chat.batch import Position, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.precision import bfloat16_if_fast
from ssah_lens.errors import BadInput
from ssah_lens.files import write_tensors
from ssah_lens.intervene.gradients import gradients_of
from ssah_lens.intervene.hooks import fills, gated
from ssah_lens.measure.refusal import log_odds
from ssah_lens.measure.utility import response_nll
from ssah_lens.progress import progress
from ssah_lens.score.base import Calibration, PerUnit, Scores, digest
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
"""Prompts of each side per step. In 45 steps at a rate of 0.33, on 48 harmful prompts, the aligned SmolLM2-135M closed
1% of its gates; without the 1% that I_S ranks highest, refusals on 36 validation prompts fell from 97% to 3%, and the
loss on harmless answers from 0.81 to 0.72 nats per token."""
KEPT_EVERY = 60.0
"""Seconds of learning after which the gate is kept, so that a killed run resumes there."""


@dataclass(frozen=True)
class _Seen:
    """What a gated model says of some rows.

    Attributes:
        change: nats of every response token of the rows whose answer must change.
        keep: the same of those whose answer must stay.
        opening: logits at the decision position of the former.
    """

    change: Float[Tensor, " token"]
    keep: Float[Tensor, " token"]
    opening: Float[Tensor, "prompt vocab"]


@dataclass(frozen=True)
class Goal:
    """What a gate is to reach; it keeps the other answers besides.

    Attributes:
        answers: loss by the mean nats per token of the answers that must change.
        refusals: openings that must become unlikely; () for none.
    """

    answers: Callable[[Float[Tensor, ""]], Float[Tensor, ""]]
    refusals: tuple[int, ...] = ()

    def opening(self, logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, " prompt"]:
        """-log of the probability of not opening with a refusal."""
        if not self.refusals:
            return logits.new_zeros(len(logits))
        return torch.nn.functional.softplus(log_odds(logits.float(), self.refusals))


def mask(model: ChatModel, data: Calibration) -> Scores:
    """Learns the two gates and scores every unit by how far its gate has moved towards closed, in logits.

    With `data.measured.store` each gate is kept there while it is learnt, and a killed run resumes.

    Raises:
        BadInput: the model refuses too little to have safety data.
    """
    if not data.safety:
        raise BadInput(f"'{model.name}' hardly refuses anything, so there is no refusal to lose; align it, or use wifv")

    fulfil = Goal(lambda nll: nll, tuple(data.refusal_tokens))
    safety, slopes = _learn(model, data, data.fulfilling, data.utility, fulfil, "refusals")
    base = _mean_nll(model, data.utility[: 2 * BATCH])
    lose = Goal(lambda nll: torch.relu(base + LOST - nll))
    utility, others = _learn(model, data, data.utility, data.safety, lose, "answers")
    return Scores(safety, utility, signed=True, importance={k: slopes[k] + others[k] for k in Kind})


def _learn(
    model: ChatModel,
    data: Calibration,
    change: list[Row],
    keep: list[Row],
    goal: Goal,
    what: str,
) -> tuple[PerUnit, PerUnit]:
    """Closes gates until `goal` is small while the nll of `keep` stays; OPEN minus the final logits, and the slopes."""
    gate = _Gate.start(model, _file(data, change, keep, what))
    fill = fills(model, data.moments, "mean")
    kept = time.perf_counter()
    with gradients_of(model):
        for step in progress(range(gate.steps, data.steps), f"gate: {what}"):
            rng = np.random.default_rng([data.seed, step])  # a resumed run draws what an unbroken one would have
            rows = [*_draw(change, rng), *_draw(keep, rng)]
            gate.descend(model, partial(_gradient, model, gate.logits, fill, rows, min(BATCH, len(change)), goal))
            if time.perf_counter() - kept > KEPT_EVERY:
                gate.save()
                kept = time.perf_counter()
    gate.save()
    moved = {k: (OPEN - v.detach()).double().cpu().numpy() for k, v in gate.logits.items()}
    return moved, {k: (v / data.steps).sqrt().double().cpu().numpy() for k, v in gate.squares.items()}


class _Gate:
    """Gate logits, their optimizer, and the file that they are kept in (None for none).

    Attributes:
        squares: sum over the steps of (d loss / d gate)^2, without the price.
    """

    def __init__(self, logits: dict[Kind, Float[Tensor, "layer unit"]], file: Path | None) -> None:
        self.logits, self.file, self.steps = logits, file, 0
        self.optimizer = torch.optim.Adam(logits.values(), lr=LR)
        self.squares = {k: torch.zeros_like(v) for k, v in logits.items()}

    @classmethod
    def start(cls, model: ChatModel, file: Path | None) -> _Gate:
        """Open gates, or those that a killed run has left."""
        make = lambda k: torch.full((model.grid.n_layers, model.grid.width(k)), OPEN, device=model.device)
        gate = cls({k: make(k).requires_grad_() for k in Kind}, file)
        if file is not None and file.is_file():
            gate._load()
        return gate

    def descend(self, model: ChatModel, backward: Callable[[], None]) -> None:
        """A step along the gradient that `backward` leaves, and the price's; in smaller parts where memory runs out."""
        while True:
            self.optimizer.zero_grad()
            try:
                backward()
                break
            except Exception as e:
                model.room.back_off(e)
        gates = {k: torch.sigmoid(v) for k, v in self.logits.items()}
        with torch.no_grad():
            for kind, v in self.logits.items():
                if v.grad is not None:  # a kind may have no units
                    self.squares[kind] += (v.grad / (gates[kind] * torch.sigmoid(-v))).square()
        closed = sum((1 - g).sum() for g in gates.values()) / sum(g.numel() for g in gates.values())
        (PRICE * closed).backward()
        self.optimizer.step()
        self.steps += 1

    def save(self) -> None:
        """Keeps the gate as it is.

        Raises:
            BadInput: the place cannot be written.
        """
        if self.file is None:
            return
        tensors = {f"{k}.logits": v.detach() for k, v in self.logits.items()}
        tensors |= {f"{k}.squares": v for k, v in self.squares.items()}
        for kind, v in self.logits.items():
            tensors |= {f"{kind}.{name}": t for name, t in self.optimizer.state[v].items()}
        write_tensors(self.file, tensors, {"steps": str(self.steps)}, "choose another --out")

    def _load(self) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, framework="pt") as f:
                self.steps = int(f.metadata()["steps"])
                for kind, v in self.logits.items():
                    v.data.copy_(f.get_tensor(f"{kind}.logits"))
                    self.squares[kind].copy_(f.get_tensor(f"{kind}.squares"))
                    moments = {n: f.get_tensor(f"{kind}.{n}").to(v.device) for n in ("exp_avg", "exp_avg_sq")}
                    self.optimizer.state[v] = {"step": f.get_tensor(f"{kind}.step"), **moments}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as e:
            raise BadInput(f"'{self.file}' is damaged; delete it to learn the gate anew") from e


def _file(data: Calibration, change: list[Row], keep: list[Row], what: str) -> Path | None:
    """The name carries a digest of data and settings: another run's gate is never taken up."""
    if data.measured.store is None:
        return None
    settings = ["squares", data.seed, data.steps, data.refusal_tokens, OPEN, LR, KEEP, PRICE, LOST, BATCH]
    return data.measured.store / f"mask-{what}-{digest(settings, change, keep)}.safetensors"


def _gradient(
    model: ChatModel,
    logits: dict[Kind, Tensor],
    fill: dict[Kind, Tensor],
    rows: list[Row],
    n: int,
    goal: Goal,
) -> None:
    """Of one step's loss; the first n rows must change. In parts, and twice through, where memory is short."""
    gates = lambda: {k: torch.sigmoid(v) for k, v in logits.items()}
    change = np.arange(len(rows)) < n
    parts = np.array_split(np.arange(len(rows)), min(len(rows), math.ceil(1 / model.room.share)))
    tokens = [sum(r.positions.count(Position.RESPONSE) for r in side) for side in (rows[:n], rows[n:])]

    def sums(part: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        with gated(model, gates(), fill):
            seen = _see(model, [rows[i] for i in part], change[part])
        return seen.change.sum() / tokens[0], seen.keep.sum() / tokens[1], goal.opening(seen.opening).sum() / n

    slope = torch.ones((), device=model.device)
    if len(parts) > 1:  # the goal is read at the mean over all parts: its slope there comes first
        with torch.no_grad():
            whole = torch.stack([sums(part)[0] for part in parts]).sum()
        whole.requires_grad_()
        (slope,) = torch.autograd.grad(goal.answers(whole), whole)
    for part in parts:
        losing, staying, opening = sums(part)
        losing = goal.answers(losing) if len(parts) == 1 else slope * losing
        (losing + opening + KEEP * staying).backward()


def _draw(rows: list[Row], rng: np.random.Generator) -> list[Row]:
    return [rows[i] for i in rng.choice(len(rows), min(BATCH, len(rows)), replace=False)]


def _see(model: ChatModel, rows: list[Row], change: Bool[np.ndarray, " row"]) -> _Seen:
    """One forward pass; `change` says which rows are those that must change."""
    batch = model.pad(rows, share_prefix=True)
    # In bfloat16 the mask's float32 minimum rounds to -inf, and a padding token that sees nothing would be NaN.
    finite = [
        (f"blocks.{i}.attn.hook_attn_scores", lambda x, hook: x.clamp(min=torch.finfo(x.dtype).min))
        for i in range(model.grid.n_layers)
    ]
    with bfloat16_if_fast(model.device), model.bridge.hooks(fwd_hooks=finite):
        logits = model.response_logits(batch)
    row = batch.response_rows
    opens = torch.ones_like(row, dtype=torch.bool)
    opens[1:] = row[1:] != row[:-1]
    changes = torch.as_tensor(change, device=row.device)[row]
    nll = response_nll(logits, batch)
    return _Seen(nll[changes], nll[~changes], logits[changes & opens])


@torch.no_grad()
def _mean_nll(model: ChatModel, rows: list[Row]) -> float:
    """Nats per response token."""
    found = []
    batches = model.batches(rows)
    for chosen, _ in batches:
        with batches.room():
            found.append(_see(model, [rows[i] for i in chosen], np.ones(len(chosen), dtype=bool)).change)
    return float(torch.cat(found).mean())
