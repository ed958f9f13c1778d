"""What every score takes and gives.

A score reads calibration data (train split only) and says, for each unit, how much it matters to refusing harmful
prompts (I_S) and to answering harmless ones (I_U). Target answers are data handed to it: it never makes its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.metric import Metric, refusal_log_odds
from ssah_lens.intervene.moments import Moments
from ssah_lens.units import Kind

PerUnit = Mapping[Kind, Float[np.ndarray, "layer unit"]]
Effects = Callable[..., Float[np.ndarray, " edit"]]
"""(model, rows, metric, edits, fill, last, what) -> mean change of the metric by each edit, as a sweep has it."""


@dataclass(frozen=True)
class Measured:
    """How much a score measures that ablates unit by unit.

    Attributes:
        units: how many units, drawn at random; None for all.
        prompts: how many prompts of each side, drawn at random; None for all.
        last: positions that are ablated, counted from the end of the prompt (1: the decision position); None for all.
        layers: layers whose units are measured; all when None.
        store: folder that what is done is kept in, so that a killed run resumes there; None keeps nothing.
        effects: how effects are measured; None sweeps all units in one go, kept in `store`.
    """

    units: int | None = None
    prompts: int | None = None
    last: int | None = 1
    layers: range | None = None
    store: Path | None = None
    effects: Effects | None = None


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
        unaligned: the counterpart that fulfils, for scores that compare the two; None where there is none.
        refusal_tokens: tokens that open the model's refusals, for scores that read the refusal score.
        measured: how much is measured, for scores that ablate unit by unit.
    """

    safety: list[Row]
    utility: list[Row]
    fulfilling: list[Row]
    safety_moments: Moments
    utility_moments: Moments
    seed: int = 0
    steps: int = 40
    unaligned: ChatModel | None = None
    refusal_tokens: tuple[int, ...] = ()
    measured: Measured = Measured()

    @property
    def refusal_metric(self) -> Metric:
        """The refusal score at the decision position.

        Raises:
            BadInput: the calibration holds no refusal tokens.
        """
        if not self.refusal_tokens:
            raise BadInput("this score reads the refusal score: give the calibration its refusal_tokens")
        return refusal_log_odds(self.refusal_tokens)

    @property
    def moments(self) -> Moments:
        """Harmful and harmless together: the means that mean ablation uses."""
        return self.safety_moments.merged(self.utility_moments)


@dataclass(frozen=True)
class Scores:
    """Importance of every unit; NaN where it was not measured: such a unit is never ranked.

    Attributes:
        safety: I_S.
        utility: I_U.
        signed: True when a negative value means the opposite effect, so that redundancy is read from magnitudes.
        layers: layers whose units may be ranked; all when None.
        importance: how much a unit matters to either, where a score knows that apart from I_S and I_U: redundancy is
            then read from it.
    """

    safety: PerUnit
    utility: PerUnit
    signed: bool
    layers: range | None = None
    importance: PerUnit | None = None


Score = Callable[[ChatModel, Calibration], Scores]


def digest(settings: Any, *rows: list[Row]) -> str:
    """Twelve hex digits of settings (as JSON) and data: names the file of a score that can be resumed."""
    return hashlib.sha256(json.dumps([settings, *([r.ids for r in part] for part in rows)]).encode()).hexdigest()[:12]


def nothing(model: ChatModel) -> PerUnit:
    """Zero for every unit: I_S of a model that has no refusals to score."""
    return {k: np.zeros((model.grid.n_layers, model.grid.width(k))) for k in Kind}


def standardised(values: Float[np.ndarray, "layer unit"]) -> Float[np.ndarray, "layer unit"]:
    """z-score within each layer (FLAP, arXiv 2312.11983); a layer without spread becomes 0."""
    if not values.size:
        return values
    spread = values.std(axis=1, keepdims=True)
    return np.divide(values - values.mean(axis=1, keepdims=True), spread, out=np.zeros_like(values), where=spread > 0)
