"""What every score takes and gives.

A score reads calibration data (train split only) and says, for each unit, how much it matters to refusing harmful
prompts (I_S) and to answering harmless ones (I_U). Target answers are data handed to it: it never makes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.intervene.moments import Moments
from ssah_lens.units import Kind

PerUnit = Mapping[Kind, Float[np.ndarray, "layer unit"]]


@dataclass(frozen=True)
class Calibration:
    """Train-split data that scores are computed from.

    Attributes:
        safety: harmful prompts, each with the model's own refusal.
        utility: harmless prompts, each with the model's own answer.
        fulfilling: the same harmful prompts, each with an answer that fulfils (the unaligned model's).
        safety_moments: activation moments over `safety`.
        utility_moments: activation moments over `utility`.
        seed: seed of whatever is drawn.
        steps: optimizer steps, for scores that learn.
    """

    safety: list[Row]
    utility: list[Row]
    fulfilling: list[Row]
    safety_moments: Moments
    utility_moments: Moments
    seed: int = 0
    steps: int = 40

    @property
    def moments(self) -> Moments:
        """Harmful and harmless together: the means that mean ablation uses."""
        return self.safety_moments.merged(self.utility_moments)


@dataclass(frozen=True)
class Scores:
    """Importance of every unit.

    Attributes:
        safety: I_S.
        utility: I_U.
        signed: True when a negative value means the opposite effect, so that redundancy is read from magnitudes.
        layers: layers whose units may be ranked; all when None.
    """

    safety: PerUnit
    utility: PerUnit
    signed: bool
    layers: range | None = None


Score = Callable[[ChatModel, Calibration], Scores]


def standardised(values: Float[np.ndarray, "layer unit"]) -> Float[np.ndarray, "layer unit"]:
    """z-score within each layer (FLAP, arXiv 2312.11983); a layer without spread becomes 0."""
    spread = values.std(axis=1, keepdims=True)
    return np.divide(values - values.mean(axis=1, keepdims=True), spread, out=np.zeros_like(values), where=spread > 0)
