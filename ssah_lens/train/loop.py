"""One training loop for alignment and fine-tuning alike.

Supervised: the loss is that of response tokens (`objective.py`). What may move is stated (`trainable.py`: a policy, and
frozen slices); frozen bits are hashed before and after. The run can be watched at a stated cadence, killed and resumed
to the same bits, and stops on a loss that is not finite with the last good weights. float32 weights or master copies;
matrix products in bfloat16 where the processor has it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ssah_lens.chat.batch import Row
from ssah_lens.chat.device import free_memory
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput, Fault
from ssah_lens.memory import give_back, keep_freed
from ssah_lens.progress import progress
from ssah_lens.train.checkpoint import Checkpoints, Progress, run_key
from ssah_lens.train.data import check_rows
from ssah_lens.train.freeze import FrozenSlices
from ssah_lens.train.objective import Anchors, FirstTokens, Objective
from ssah_lens.train.trainable import Part, Policy, only_trainable, trainable_parts

WINDOW = 8
"""Steps whose examples are grouped by length together."""
MOMENTUM = 0.9
Optimizer = Literal["adamw", "sgd"]
STATES = {"adamw": 2, "sgd": 1}
"""Numbers that an optimizer keeps for each one it trains."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        steps: optimizer steps; the data are reshuffled each time they run out.
        batch_size: examples per step.
        lr: peak learning rate.
        warmup: share of the steps in which the rate rises linearly; it then falls linearly to a tenth.
        weight_decay: the optimizer's.
        clip: largest gradient norm.
        part_tokens: padded tokens that go through the model at once; a step's gradient is added up from such parts.
        seed: order of the examples.
        policy: what training may move at all, see `trainable.Policy`.
        keep_good: steps between two copies (in memory, of the trainable values) that a diverged run falls back to; 0
            keeps none.
        optimizer: 'adamw', or 'sgd' with momentum 0.9.
    """

    steps: int
    batch_size: int = 8
    lr: float = 3e-5
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    part_tokens: int = 1536
    seed: int = 0
    policy: Policy = "blocks"
    keep_good: int = 8
    optimizer: Optimizer = "adamw"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise BadInput(f"training takes {self.steps} steps of {self.batch_size} examples; allowed is 1 or more")
        if not 0 < self.lr < math.inf:
            raise BadInput(f"the learning rate is {self.lr}; allowed is a number above 0, for example 5e-5")
        if self.optimizer not in STATES:
            raise BadInput(f"no optimizer '{self.optimizer}': allowed are {', '.join(STATES)}")

    def rate(self, step: int) -> float:
        """Learning rate of this step."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return self.lr * (step + 1) / rise
        return self.lr * (1 - 0.9 * (step - rise) / max(1, self.steps - rise))


@dataclass(frozen=True)
class Watch:
    """A look at the model while it trains.

    Attributes:
        every: steps between two looks; there is one before the first step and one after the last as well.
        look: measures the model (in evaluation mode) and names the numbers.
    """

    every: int
    look: Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Trained:
    """What happened in training.

    Attributes:
        losses: mean nats per response token, one per step.
        frozen_parameters: how many parameters were frozen.
        unchanged: True when the hash of all of them is what it was; None when nothing was frozen.
        sha256: that hash; '' when nothing was frozen.
        trained_parameters: how many the optimizer moved.
        curve: (steps done, numbers seen) at the cadence of `Watch`.
        examples: how many different examples were read.
    """

    losses: tuple[float, ...]
    frozen_parameters: int = 0
    unchanged: bool | None = None
    sha256: str = ""
    trained_parameters: int = 0
    curve: tuple[tuple[int, Mapping[str, float]], ...] = ()
    examples: int = 0

    @property
    def final_loss(self) -> float:
        """Mean of the last quarter of the steps."""
        return float(np.mean(self.losses[-max(1, len(self.losses) // 4) :]))


class Diverged(Fault):
    """A loss or a gradient is not finite; training stopped.

    Attributes:
        trained: the run up to the last good weights.
        model: which has them.
    """

    def __init__(self, message: str, trained: Trained, model: ChatModel) -> None:
        super().__init__(message)
        self.trained, self.model = trained, model


def train(
    model: ChatModel,
    rows: Sequence[Row],
    settings: TrainSettings,
    frozen: FrozenSlices | None = None,
    what: str = "training",
    anchors: Anchors | None = None,
    constraint: FirstTokens | None = None,
    parts: Sequence[Part] | None = None,
    watch: Watch | None = None,
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Trains the model in place.

    Args:
        model: the model; its plain view is trained.
        rows: from `ChatModel.rows`, each with a response.
        settings: how.
        frozen: slices to hold.
        what: label of the progress bar.
        anchors: more rows, shuffled in with the others.
        constraint: on the first response tokens of `rows`.
        parts: what to train instead of what policy and `frozen` leave (an adapter's parameters).
        watch: curves during training.
        checkpoints: where to keep the state, and to take it up again.

    Raises:
        BadInput: no rows, a row without a response or too long, nothing left to train, a foreign checkpoint, or not
            enough memory for gradients and optimizer.
        Diverged: the loss or a gradient is not finite.
        Fault: a frozen parameter has changed.
    """
    objective = Objective(rows, anchors, constraint)
    check_rows(model, rows and objective.every)
    parts = list(parts) if parts is not None else trainable_parts(model, frozen, settings.policy)
    give_back()  # what was freed before, generation mostly, is not to lie beside the gradients
    check_training_room(sum(part.tensor.numel() for part in parts), settings, model.device)
    keep_freed()
    run = _Run(model, objective, settings, parts, frozen, watch)
    if checkpoints:
        what_counts = (settings, constraint and constraint.strengths, anchors and anchors.weight)
        run.resume(checkpoints, run_key(what_counts, objective.every, parts, frozen.sha256 if frozen else ""))
    with only_trainable(model.plain, parts):
        run.to_the_end(what)
    if frozen is not None and not frozen.unchanged():
        raise Fault("a frozen parameter changed in training")
    trained = run.report()
    del run, parts
    give_back()
    return trained


class _Run:
    """A run under way: what is trained, how far it is, and its last good weights."""

    def __init__(
        self,
        model: ChatModel,
        objective: Objective,
        settings: TrainSettings,
        parts: list[Part],
        frozen: FrozenSlices | None,
        watch: Watch | None,
    ) -> None:
        self.model, self.objective, self.settings = model, objective, settings
        self.parts, self.frozen, self.watch = parts, frozen, watch
        self.tensors = [part.tensor for part in parts]
        self.optimizer = _optimizer(settings, self.tensors)
        self.order = _order([len(r.ids) for r in objective.every], settings)
        self.done = Progress()
        self.checkpoints: Checkpoints | None = None
        self.key = ""

    def resume(self, checkpoints: Checkpoints, key: str) -> None:
        """Takes up what was kept there, if anything was, and goes on keeping."""
        self.checkpoints, self.key = checkpoints, key
        self.done = checkpoints.resume(key, self.parts, self.optimizer)

    def to_the_end(self, what: str) -> None:
        """All steps that are left.

        Raises:
            Diverged: the loss or a gradient is not finite.
        """
        good = _Good(self.parts, self.done, self.settings.keep_good)
        kept = time.monotonic()
        self._look()
        for step in progress(range(self.done.step, self.settings.steps), what):
            self._step(step, good)
            self._look()
            kept = self._save(kept)

    def _step(self, step: int, good: _Good) -> None:
        settings = self.settings
        loss = _gradient(self.objective, self.model, self.optimizer, self.order[step], settings.part_tokens)
        norm = float(torch.nn.utils.clip_grad_norm_(self.tensors, settings.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            bad = f"loss became {loss}" if not math.isfinite(loss) else f"gradient became {norm}"
            back = f"; the model has its weights of step {good.restore(self.done)} again" if settings.keep_good else ""
            text = f"the {bad} at step {step}: lower the learning rate ({settings.lr}){back}"
            raise Diverged(text, self.report(), self.model)
        good.keep(self.done)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(step)
        self.optimizer.step()
        for part in self.parts:
            part.write()
        self.done.losses.append(loss)

    def _look(self) -> None:
        """One point of the curve when one is due."""
        watch, done = self.watch, self.done
        if watch is None:
            return
        due = done.step % watch.every == 0 or done.step == self.settings.steps
        if due and (not done.curve or done.curve[-1][0] < done.step):
            self.model.plain.eval()
            with torch.no_grad():
                done.curve.append((done.step, dict(watch.look())))
            self.model.plain.train()

    def _save(self, kept: float) -> float:
        """Keeps a checkpoint when one is due; returns when the last one was kept."""
        where = self.checkpoints
        if where is None or self.done.step % where.every or time.monotonic() - kept < where.seconds:
            return kept
        where.save(self.key, self.parts, self.optimizer, self.done)
        return time.monotonic()

    def report(self) -> Trained:
        """What happened so far."""
        held = self.frozen
        return Trained(
            tuple(self.done.losses),
            held.n_parameters if held else 0,
            True if held else None,
            held.sha256 if held else "",
            sum(t.numel() for t in self.tensors),
            tuple(self.done.curve),
            len({i for step in self.order[: self.done.step] for i in step}),
        )


def _gradient(
    objective: Objective, model: ChatModel, optimizer: torch.optim.Optimizer, chosen: list[int], part_tokens: int
) -> float:
    """The loss of a step, with its gradient; begun anew in smaller parts where memory runs out."""
    while True:
        optimizer.zero_grad(set_to_none=True)  # before the forward pass: gradients and activations never add up
        try:
            return objective.backward(model, chosen, int(part_tokens * model.room.share))
        except Exception as e:
            model.room.back_off(e)
        for p in model.plain.parameters():
            p.grad = None


class _Good:
    """The last trainable values whose loss and gradient are known to be finite."""

    def __init__(self, parts: Sequence[Part], done: Progress, every: int) -> None:
        self.parts, self.step, self.every = parts, done.step, every
        self.values: list[Tensor] | None = None

    def keep(self, done: Progress) -> None:
        if not self.every or (self.values is not None and done.step - self.step < self.every):
            return
        self.step = done.step
        if self.values is None:
            self.values = [part.values.clone() for part in self.parts]
        else:
            for kept, part in zip(self.values, self.parts, strict=True):
                kept.copy_(part.values)

    @torch.no_grad()
    def restore(self, done: Progress) -> int:
        """Puts them back, and forgets the steps since; the weights of a run that never began are good as they are."""
        for kept, part in zip(self.values or (), self.parts, strict=bool(self.values)):
            part.tensor.copy_(kept)
            part.write()
        del done.losses[self.step :]
        done.curve[:] = [(step, seen) for step, seen in done.curve if step <= self.step]
        return self.step


def check_training_room(numbers: int, settings: TrainSettings, device: torch.device) -> None:
    """Refuses a training whose gradients and optimizer state the device cannot hold: Linux would kill the process.

    Args:
        numbers: how many are trained, in float32 each.
        settings: optimizer, and whether a good copy is kept.
        device: where.

    Raises:
        BadInput: with what it needs beside the model, what is free, and what to do.
    """
    copies = 1 + STATES[settings.optimizer] + bool(settings.keep_good)
    need, free = copies * numbers * torch.float32.itemsize, free_memory(device)
    if free is not None and need > free:
        raise BadInput(
            f"training {numbers / 1e6:,.0f} million numbers takes {need / 1e9:.1f} GB beside the model (gradients, "
            f"{settings.optimizer}), {device} has {free / 1e9:.1f} GB free: train an adapter (--method lora), "
            "few units (--train-only RU), or on another device"
        )


def _optimizer(settings: TrainSettings, tensors: list[Tensor]) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(tensors, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    return torch.optim.SGD(tensors, lr=settings.lr, momentum=MOMENTUM, weight_decay=settings.weight_decay)


def _order(lengths: Sequence[int], settings: TrainSettings) -> list[list[int]]:
    """Indices of each step's examples: shuffled passes over the data, then grouped by length within windows.

    Examples of similar length share a step, which spares padding; which steps come first stays random.
    """
    rng = np.random.default_rng(settings.seed)
    need = settings.steps * settings.batch_size
    flat = np.concatenate([rng.permutation(len(lengths)) for _ in range(math.ceil(need / len(lengths)))])[:need]
    steps: list[list[int]] = []
    window = WINDOW * settings.batch_size
    for start in range(0, need, window):
        chosen = sorted(flat[start : start + window].tolist(), key=lambda i: (lengths[i], i))
        groups = [chosen[k : k + settings.batch_size] for k in range(0, len(chosen), settings.batch_size)]
        steps += [groups[k] for k in rng.permutation(len(groups))]
    return steps
