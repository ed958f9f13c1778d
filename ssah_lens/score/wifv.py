"""WIFV: Var(X_j) ||W_:j||^2, the paper's Eq. 1 (FLAP, arXiv 2312.11983), streamed exactly.

FLAP's released code differs from its formula (METHOD.md section 4); this is the formula.
"""

from __future__ import annotations

import numpy as np
import torch

from ssah_lens.chat.batch import Position
from ssah_lens.chat.model import ChatModel
from ssah_lens.intervene.moments import Moments
from ssah_lens.score.base import Calibration, PerUnit, Scores, nothing, standardised
from ssah_lens.units import Kind


def wifv(model: ChatModel, data: Calibration) -> Scores:
    """I_S and I_U are the same score on the safety and on the utility data, over response tokens."""
    return Scores(_scores(model, data.safety_moments), _scores(model, data.utility_moments), signed=False)


def _scores(model: ChatModel, moments: Moments) -> PerUnit:
    d_head = model.anatomy.d_head
    of = lambda kind: moments.variance(kind, Position.RESPONSE).numpy() * _column_norms(model, kind)
    channels = {kind: of(kind) if kind in model.grid.kinds else nothing(model)[kind] for kind in Kind}
    # A head is the mean of its channels' standardised scores, standardised again over the layer's heads.
    heads = standardised(channels[Kind.HEAD]).reshape(model.grid.n_layers, model.grid.n_heads, d_head).mean(-1)
    return {Kind.MLP: standardised(channels[Kind.MLP]), Kind.HEAD: standardised(heads)}


def _column_norms(model: ChatModel, kind: Kind) -> np.ndarray:
    """Squared norm of each input column of the output matrix, [layer, channel]."""
    norms = [b.output_weight(kind).detach().double().square().sum(0).cpu() for b in model.anatomy.blocks]
    return torch.stack(norms).numpy()
