"""One training loop for alignment and fine-tuning alike.

Supervised: the loss is the mean negative log-likelihood of response tokens, prompts are masked. Only block matrices
are trained; embeddings, norms and unembedding are held fixed in every arm alike (our stated policy: the paper does not
say). float32 weights; matrix products in bfloat16 where the processor has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ssah_lens.chat.model import ChatModel, Row
from ssah_lens.chat.precision import has_bfloat16
from ssah_lens.errors import BadInput, Fault
from ssah_lens.measure.utility import response_nll
from ssah_lens.progress import progress
from ssah_lens.train.freeze import FrozenSlices


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        steps: optimizer steps; the data are reshuffled each time they run out.
        batch_size: examples per step.
        lr: peak learning rate of AdamW.
        warmup: share of the steps in which the rate rises linearly; it then falls linearly to a tenth.
        weight_decay: AdamW's.
        clip: largest gradient norm.
        seed: order of the examples.
    """

    steps: int
    batch_size: int = 8
    lr: float = 3e-5
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of this step."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return self.lr * (step + 1) / rise
        return self.lr * (1 - 0.9 * (step - rise) / max(1, self.steps - rise))


@dataclass(frozen=True)
class Trained:
    """What happened in training.

    Attributes:
        losses: mean nats per response token, one per step.
        frozen_parameters: how many parameters were frozen.
        unchanged: True after a bitwise comparison of all of them; None when nothing was frozen.
    """

    losses: tuple[float, ...]
    frozen_parameters: int = 0
    unchanged: bool | None = None

    @property
    def final_loss(self) -> float:
        """Mean of the last quarter of the steps."""
        return float(np.mean(self.losses[-max(1, len(self.losses) // 4) :]))


def train(
    model: ChatModel,
    rows: Sequence[Row],
    settings: TrainSettings,
    frozen: FrozenSlices | None = None,
    what: str = "training",
) -> Trained:
    """Trains the model's block matrices in place.

    Args:
        model: the model; its plain view is trained.
        rows: from `ChatModel.rows`, each with a response.
        settings: how.
        frozen: slices to hold.
        what: label of the progress bar.

    Raises:
        BadInput: no rows, or a row without a response.
        Fault: the loss is not finite, or a frozen parameter has changed.
    """
    if not rows or any(row.positions[-1] != 3 for row in rows):
        raise BadInput("training needs at least one example, and an answer in each")
    trainable = _block_parameters(model)
    optimizer = torch.optim.AdamW(trainable, lr=settings.lr, weight_decay=settings.weight_decay)
    history = []
    model.plain.train()
    try:
        for step, chosen in enumerate(progress(_order(len(rows), settings), what, total=settings.steps)):
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            history.append(_step(model, [rows[i] for i in chosen], optimizer, trainable, settings.clip, frozen))
            if not math.isfinite(history[-1]):
                raise Fault(
                    f"the training loss became {history[-1]} at step {step}: try a lower learning rate than {settings.lr}"
                )
    finally:
        model.plain.eval()
        for p in model.plain.parameters():
            p.grad = None
            p.requires_grad_(True)
    if frozen is None:
        return Trained(tuple(history))
    if not frozen.unchanged():
        raise Fault("a frozen parameter changed in training")
    return Trained(tuple(history), frozen.n_parameters, True)


def _step(model, rows, optimizer, trainable, clip, frozen) -> float:
    batch = model.pad(rows)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=has_bfloat16(model.device)):
        logits = model.plain(
            input_ids=batch.ids, attention_mask=batch.mask, logits_to_keep=batch.n_response + 1, use_cache=False
        ).logits
    loss = response_nll(logits, batch).sum() / batch.response.sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if frozen is not None:
        frozen.zero_gradients()
    torch.nn.utils.clip_grad_norm_(trainable, clip)
    optimizer.step()
    if frozen is not None:
        frozen.restore()
    return loss.item()


def _block_parameters(model: ChatModel) -> list[torch.nn.Parameter]:
    inside = [p for block in model.anatomy.blocks for m in block.modules for p in m.parameters(recurse=False)]
    ids = {id(p) for p in inside}
    for p in model.plain.parameters():
        p.requires_grad_(id(p) in ids)
    return inside


def _order(n: int, settings: TrainSettings):
    """Indices of each step's examples: shuffled passes over the data, joined."""
    rng = np.random.default_rng(settings.seed)
    need = settings.steps * settings.batch_size
    flat = np.concatenate([rng.permutation(n) for _ in range(math.ceil(need / n))])[:need]
    return list(flat.reshape(settings.steps, settings.batch_size))
