"""What a sweep reads at the decision position: a number from the logits, and the columns that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.measure.refusal import log_odds


@dataclass(frozen=True)
class Metric:
    """A number per prompt.

    Attributes:
        name: for labels.
        columns: vocabulary columns that it reads; None for all of them.
        function: of those columns' logits, [..., column] -> [...]; with `by_prompt` also of the prompts' indices.
        by_prompt: True when the number is read against something of the prompt's own (a reference, a target).
    """

    name: str
    columns: Tensor | None
    function: Callable[..., Tensor]
    by_prompt: bool = False

    def of(
        self, logits: Float[Tensor, "batch vocab"], prompts: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """From whole logits; `prompts` says which prompt each row is, as `by_prompt` needs to know."""
        return self.of_columns(logits if self.columns is None else logits[:, self.columns], prompts)

    def of_columns(
        self, logits: Float[Tensor, "batch column"], prompts: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """From the logits of `columns`."""
        return self.function(logits.double(), prompts) if self.by_prompt else self.function(logits.double())


def finite(values: np.ndarray, metric: Metric, where: str) -> np.ndarray:
    """The values themselves.

    Raises:
        BadInput: one of them is no number.
    """
    if not np.isfinite(values).all():
        raise BadInput(
            f"the metric '{metric.name}' is not finite {where}; choose one that is (a log of zero, or a model whose "
            "logits overflow, cannot be swept)"
        )
    return values


@torch.inference_mode()
def metric_of(model: ChatModel, rows: Sequence[Row], metric: Metric) -> Float[np.ndarray, " prompt"]:
    """The metric of the undamaged model at the end of every row."""
    out = np.zeros(len(rows))
    for chosen, batch in model.batches(rows):
        which = torch.tensor(chosen, device=model.device)
        out[chosen] = metric.of(model.logits(batch)[:, -1], which).double().cpu().numpy()
    return out


def refusal_log_odds(tokens: Iterable[int]) -> Metric:
    """Arditi's refusal score, log p_ref - log(1 - p_ref): reads the whole vocabulary."""
    tokens = list(tokens)
    _need(tokens, "refusing")
    return Metric("refusal score (log-odds)", None, lambda logits: log_odds(logits, tokens))


def logit_difference(refusing: Iterable[int], fulfilling: Iterable[int]) -> Metric:
    """log-sum-exp of the refusing tokens' logits minus that of the fulfilling ones': reads only these columns."""
    refusing, fulfilling = sorted(set(refusing)), sorted(set(fulfilling) - set(refusing))
    _need(refusing, "refusing")
    _need(fulfilling, "fulfilling")
    n = len(refusing)
    return Metric(
        "logit difference, refusing minus fulfilling tokens",
        torch.tensor(refusing + fulfilling),
        lambda logits: logits[..., :n].logsumexp(-1) - logits[..., n:].logsumexp(-1),
    )


def divergence(reference: Float[Tensor, "prompt vocab"]) -> Metric:
    """KL(reference || this model) per prompt, in nats.

    Args:
        reference: log-probabilities of the undamaged model at the decision position of every prompt.
    """
    wide = reference.double()
    p, entropy = wide.exp(), (wide.exp() * wide).nan_to_num().sum(-1)

    def function(logits: Tensor, prompts: Tensor) -> Tensor:
        # KL = sum p log p - sum p logit + logsumexp(logit): no second table of log-probabilities.
        mean = torch.stack([p[i] @ x for i, x in zip(prompts.tolist(), logits, strict=True)])
        return entropy[prompts] - mean + logits.logsumexp(-1)

    return Metric("KL from the undamaged model", None, function, by_prompt=True)


def _need(tokens: list[int], what: str) -> None:
    if not tokens:
        raise BadInput(f"the metric needs at least one {what} token")
