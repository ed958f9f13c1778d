"""Wanda: |W_ij| ||X_j||_2, summed over the unit's column (Sun et al. 2023; for safety Wei et al. 2024, 2402.05162).

X is the input of the output matrix W over response tokens. The norm is taken per token (root mean square), so that the
two data sets need not have the same number of tokens. Wei et al. keep the same share of every matrix, so units are
compared within their layer: scores are standardised there.
"""

from __future__ import annotations

import numpy as np

from ssah_lens.chat.batch import Position
from ssah_lens.chat.model import ChatModel
from ssah_lens.intervene.moments import Moments
from ssah_lens.score.base import Calibration, PerUnit, Scores, nothing, standardised


def wanda(model: ChatModel, data: Calibration) -> Scores:
    """I_S and I_U are the same score on the safety and on the utility data; from the moments, no pass of its own."""
    return Scores(_scores(model, data.safety_moments), _scores(model, data.utility_moments), signed=False)


def _scores(model: ChatModel, moments: Moments) -> PerUnit:
    out = dict(nothing(model))
    for kind in model.grid.kinds:
        mean = moments.mean[kind][:, Position.RESPONSE]
        rms = (moments.variance(kind, Position.RESPONSE) + mean.square()).sqrt().numpy()
        columns = [b.output_weight(kind).detach().double().abs().sum(0).cpu().numpy() for b in model.anatomy.blocks]
        channels = rms * np.stack(columns)
        # A head is the sum over its channels, as a neuron is the sum over its one.
        out[kind] = standardised(channels.reshape(model.grid.n_layers, model.grid.width(kind), -1).sum(-1))
    return out
