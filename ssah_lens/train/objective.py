"""What a training step minimises, summed over response tokens; prompts are masked.

Plain rows count by negative log-likelihood. `Anchors` count by their KL divergence from a reference model: there the
model is to stay what it was. `FirstTokens` is the constrained fine-tuning of Qi et al. 2024 (arXiv 2406.05946, eq. 3):

    -2/b log sigmoid(b (log p - log p_start))    per token,

whose gradient is that of the likelihood times 2 sigmoid(-b (log p - log p_start)). A large b stops a token from moving
once it has become likelier than it was; b -> 0 gives plain likelihood back. The first response tokens, which decide
between refusing and fulfilling, get the large b.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ssah_lens.chat.batch import Batch, Position, Row, by_length
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.precision import bfloat16_if_fast
from ssah_lens.measure.utility import response_nll

PART_OVERHEAD = 60
"""What a forward and backward pass costs beside its tokens, in tokens."""
FIRST, EARLY, LATER = 0.5, 2.0, 0.1
"""b of the first response token, of tokens 2 to EARLY_END, and of the rest: the paper's."""
EARLY_END = 5


@dataclass(frozen=True)
class Anchors:
    """Rows on which the model shall keep the reference model's token distributions.

    Attributes:
        rows: prompts with responses.
        reference: the model to stay close to; not the one that is trained.
        weight: of an anchored token against 1 for another.
    """

    rows: Sequence[Row]
    reference: ChatModel
    weight: float = 1.0


@dataclass(frozen=True)
class FirstTokens:
    """The constraint on the first response tokens.

    Attributes:
        start: per row, the negative log-likelihood of its response tokens under the start model.
        first, early, later: b of the first token, of tokens 2 to `EARLY_END`, and of the rest.
    """

    start: Sequence[Float[Tensor, " token"]]
    first: float = FIRST
    early: float = EARLY
    later: float = LATER

    @classmethod
    def of(cls, model: ChatModel, rows: Sequence[Row], part_tokens: int = 768, **strengths: float) -> FirstTokens:
        """Reads the start model once; no copy of it is kept."""
        start: list[Tensor] = [torch.empty(0)] * len(rows)
        batches = model.batches(rows, part_tokens, share_prefix=False)
        for chosen, batch in batches:
            with batches.room(), torch.no_grad():
                nll, row = response_nll(_response_logits(model, batch), batch), batch.response_rows
                for k, i in enumerate(chosen):
                    start[i] = nll[row == k]
        return cls(start, **strengths)

    def losses(self, nll: Float[Tensor, " token"], chosen: Sequence[int]) -> Float[Tensor, " token"]:
        """The constrained loss per token.

        Args:
            nll: of the response tokens of these rows, one row after the other.
            chosen: which rows.
        """
        start = torch.cat([self.start[i] for i in chosen])
        b = torch.cat([self._strengths(len(self.start[i])) for i in chosen]).to(nll)
        return 2 / b * torch.nn.functional.softplus(b * (nll - start))

    @property
    def strengths(self) -> tuple[float, float, float]:
        return self.first, self.early, self.later

    def _strengths(self, n: int) -> Tensor:
        b = torch.full((n,), self.later)
        b[:EARLY_END] = self.early
        b[:1] = self.first
        return b


@dataclass(frozen=True)
class Objective:
    """What is trained on, and how its loss is counted.

    Attributes:
        rows: prompts with answers.
        anchors: more rows, numbered after the others.
        constraint: over `rows`.
    """

    rows: Sequence[Row]
    anchors: Anchors | None = None
    constraint: FirstTokens | None = None

    @property
    def every(self) -> list[Row]:
        return [*self.rows, *(self.anchors.rows if self.anchors else ())]

    def backward(self, model: ChatModel, chosen: Sequence[int], part_tokens: int) -> float:
        """Adds the gradient of the mean loss per response token, in parts, so that long rows need no more memory.

        Returns:
            What to watch, in nats per response token: likelihood (without the constraint), KL for anchored rows.
        """
        every = self.every
        rows = [every[i] for i in chosen]
        scored = sum(r.positions.count(Position.RESPONSE) for r in rows)
        total = 0.0
        for part in by_length(rows, part_tokens, PART_OVERHEAD, share_prefix=True):
            loss, watched = self._loss(model, [rows[k] for k in part], [chosen[k] for k in part])
            (loss / scored).backward()
            total += watched.item() / scored
        return total

    def _loss(self, model: ChatModel, rows: list[Row], numbers: list[int]) -> tuple[Tensor, Tensor]:
        """Nats summed over response tokens: what is minimised, and what is watched."""
        batch = model.pad(rows, share_prefix=True)
        logits = _response_logits(model, batch)
        nll = response_nll(logits, batch)
        if self.constraint is not None:
            return self.constraint.losses(nll, numbers).sum(), nll.detach().sum()
        anchored = [i >= len(self.rows) for i in numbers]
        if self.anchors is None or not any(anchored):
            return nll.sum(), nll.detach().sum()
        chosen = torch.tensor(anchored, device=model.device)
        token = chosen[batch.response_rows]
        with torch.no_grad():
            some = Batch(batch.ids[chosen], batch.mask[chosen], batch.positions[chosen], batch.prefix)
            wanted = _response_logits(self.anchors.reference, some).float().log_softmax(-1)
        got = logits[token].float().log_softmax(-1)
        kl = torch.nn.functional.kl_div(got, wanted, reduction="sum", log_target=True)
        loss = nll[~token].sum() + self.anchors.weight * kl
        return loss, loss.detach()


def _response_logits(model: ChatModel, batch: Batch) -> Float[Tensor, "token vocab"]:
    with bfloat16_if_fast(model.device):
        return model.response_logits(batch, plain=True)
