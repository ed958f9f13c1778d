"""SNIP: mean over examples of |W dL/dW|, summed over what a unit owns (Lee et al. 2019; Wei et al. 2024, 2402.05162).

L is the mean negative log-likelihood of the response given the prompt. The absolute value is taken per example, before
the mean: parts that pull in opposite directions on different prompts do not cancel. It is the first-order change of the
loss if the entry were zero, so layers share one scale and nothing is standardised.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ssah_lens.chat.anatomy import Piece
from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.intervene.gradients import gradients_of
from ssah_lens.measure.utility import response_nll
from ssah_lens.progress import progress
from ssah_lens.score.base import Calibration, PerUnit, Scores, nothing
from ssah_lens.units import Kind


def snip(model: ChatModel, data: Calibration) -> Scores:
    """I_S and I_U are the same score on the safety and on the utility data; a forward and backward pass per example."""
    return Scores(
        _scores(model, data.safety, "snip: refusals"), _scores(model, data.utility, "snip: answers"), signed=False
    )


def _scores(model: ChatModel, rows: Sequence[Row], what: str) -> PerUnit:
    if not rows:
        return nothing(model)
    total = {k: torch.zeros(model.grid.n_layers, model.grid.width(k), dtype=torch.float64) for k in Kind}
    owners: dict[nn.Parameter, list[tuple[Kind, int, Piece]]] = {}
    for layer, block in enumerate(model.anatomy.blocks):
        for kind, pieces in ((Kind.MLP, block.neurons), (Kind.HEAD, block.heads)):
            for piece in pieces:
                owners.setdefault(piece.parameter, []).append((kind, layer, piece))

    def add(parameter: nn.Parameter) -> None:
        # Called when this parameter's gradient is whole; it is used up at once, so that they never lie side by side.
        size = (parameter.detach().float() * parameter.grad.float()).abs()
        for kind, layer, piece in owners[parameter]:
            along = size.sum(1 - piece.dim, dtype=torch.float64) if size.ndim == 2 else size.double()
            mine = along.cpu()[piece.index(np.arange(model.grid.width(kind)))]
            total[kind][layer] += mine.view(-1, piece.size).sum(1)
        parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(add) for p in owners]
    try:
        with gradients_of(model, owners), torch.enable_grad():
            for row in progress(rows, what):
                batch = model.pad([row])
                response_nll(model.response_logits(batch, plain=True), batch).mean().backward()
    finally:
        for handle in handles:
            handle.remove()
    return {k: (v / len(rows)).numpy() for k, v in total.items()}
