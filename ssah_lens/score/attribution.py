"""Attribution patching (Nanda 2023; AtP*, Kramar et al. 2024, arXiv 2403.00745): the guessed effect of mean ablation.

I_S is the refusal score that harmful prompts would lose without the unit, to first order and with its sign. I_U is the
KL from the undamaged model on its answers to harmless prompts, to second order: it has no slope there, so the change of
the loss would say nothing of damage (`intervene.attribution.curvature`).

`attribution` takes the gradient at the activation itself, for all positions at once, as role ablation acts on all.
`integrated` averages the gradient of I_S on the way to the mean (Sundararajan et al. 2017), which sees saturation, at
the decision position only: it needs passes of its own for every layer.
"""

from __future__ import annotations

from ssah_lens.chat.model import ChatModel
from ssah_lens.intervene.attribution import attribution as estimate
from ssah_lens.intervene.attribution import curvature
from ssah_lens.intervene.sweep import Fill
from ssah_lens.score.base import Calibration, Scores, nothing
from ssah_lens.units import Kind

STEPS = 4
"""Points between an activation and its mean."""
SAMPLES = 2
"""Draws per answer token; with 36 answers of 20 tokens each unit's KL is the mean of 36 squares a draw."""
PROMPTS = 64
"""Prompts whose effects are kept apart at once; then only their sum is."""


def attribution(model: ChatModel, data: Calibration) -> Scores:
    """A forward and a backward pass over the refusals, SAMPLES over the answers; all positions."""
    return _scores(model, data, steps=0, last=None)


def integrated(model: ChatModel, data: Calibration) -> Scores:
    """Integrated gradients at the decision position: STEPS passes of its own for every layer and kind."""
    return _scores(model, data, steps=STEPS, last=1)


def _scores(model: ChatModel, data: Calibration, steps: int, last: int | None) -> Scores:
    fill, metric = Fill("mean", data.moments), data.refusal_metric
    safety = nothing(model)
    for start in range(0, len(data.safety), PROMPTS):
        prompts = [r.prompt for r in data.safety[start : start + PROMPTS]]
        effect = estimate(model, prompts, metric, fill, last, steps, "attribution: refusals")
        safety = {k: safety[k] - effect[k].sum(-1) / len(data.safety) for k in Kind}
    utility = curvature(model, data.utility, fill, SAMPLES, data.seed, "attribution: answers")
    return Scores(safety, utility, signed=True)
