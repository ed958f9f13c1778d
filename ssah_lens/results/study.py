"""All of a study, and its scorecard."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssah_lens.results.basics import AlignResult, RefusalResult, Verdict
from ssah_lens.results.contexts import ContextsResult
from ssah_lens.results.direction import DirectionResult
from ssah_lens.results.patching import PatchResult
from ssah_lens.results.roles import AblateResult, ScoreComparison, StabilityResult, SufficiencyResult, UnitsResult
from ssah_lens.results.tuning import BudgetResult, FreezeResult, TransferResult, TuningResult
from ssah_lens.stats import Estimate

SCHEMA = 1
"""Version of `results.json`; an older run folder is read or refused by it."""


@dataclass(frozen=True)
class ScoreRow:
    """One line of the scorecard.

    Attributes:
        id: hypothesis, H1 to H7, or 'check' for what must hold before the others say anything.
        claim: in plain words.
        effect: the measured effect; `unit` says of what.
        control: the same number for the control.
        verdict: by the written rule.
        reading: one sentence in plain words.
    """

    id: str
    claim: str
    effect: Estimate
    unit: str
    control: Estimate | None
    control_name: str
    verdict: Verdict
    reading: str


@dataclass(frozen=True)
class Results:
    """Everything that `results.json` holds; a stage that was not run is None."""

    schema: int = SCHEMA
    model: str = ""
    profile: str = ""
    align: AlignResult | None = None
    refusal: RefusalResult | None = None
    units: UnitsResult | None = None
    ablate: AblateResult | None = None
    freeze: FreezeResult | None = None
    scorecard: tuple[ScoreRow, ...] = field(default=())
    direction: DirectionResult | None = None
    not_run: dict[str, str] = field(default_factory=dict)
    """Hypotheses that the profile leaves out -> the command that tests them (DIR: the run folder)."""
    scores: ScoreComparison | None = None
    stability: StabilityResult | None = None
    sufficiency: SufficiencyResult | None = None
    contexts: ContextsResult | None = None
    patch: PatchResult | None = None
    tuning: TuningResult | None = None
    budget: BudgetResult | None = None
    transfer: TransferResult | None = None
