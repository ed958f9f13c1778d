"""Unit roles and their proof: sizes, ablation, sufficiency, stability, the comparison of scores."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ssah_lens import stats
from ssah_lens.results.basics import Behaviour, Outcomes
from ssah_lens.results.tuning import RoleMoves
from ssah_lens.stats import Estimate


@dataclass(frozen=True)
class SizeChoice:
    """A candidate size of a role, tried on the validation split.

    Attributes:
        share: of each kind's units.
        refused: share of validation prompts refused with the set ablated.
        answer_loss: nats per token on the model's own answers with the set ablated.
    """

    share: float
    refused: float
    answer_loss: float


@dataclass(frozen=True)
class RoleSize:
    """How a role's size was chosen.

    Attributes:
        chosen: share of each kind's units, before precedence.
        largest_within_tolerance: the largest candidate that kept the other attribute; None if none did.
        reached: whether the rule's target was met (otherwise the best candidate within tolerance was taken).
        curve: all candidates.
    """

    chosen: float
    largest_within_tolerance: float | None
    reached: bool
    curve: tuple[SizeChoice, ...]


@dataclass(frozen=True)
class RoleShare:
    """A role's size after precedence.

    Attributes:
        n: number of units.
        units: share of all units.
        parameters: share of block parameters that the units own.
    """

    n: int
    units: float
    parameters: float


@dataclass(frozen=True)
class UnitsResult:
    """Stage `units`."""

    score: str
    seconds: float
    calibration: int
    validation: int
    base_refused: float
    base_answer_loss: float
    sizes: dict[str, RoleSize]
    roles: dict[str, RoleShare]
    by_layer: dict[str, list[int]]


@dataclass(frozen=True)
class Ablation:
    """One set ablated one way, on the test split.

    Attributes:
        role: which role, or the role whose random twin this is.
        mode: 'mean', 'zero' or 'resample'.
        control: None for the role itself, else the seed of the matched random set.
        overlap: share of a control's units that lie in the role (0 where a disjoint twin fits).
        behaviour: what the damaged model does.
        refused: whether each harmful prompt was refused, in the order of the test prompts.
    """

    role: str
    mode: str
    control: int | None
    overlap: float
    behaviour: Behaviour
    refused: tuple[bool, ...]


@dataclass(frozen=True)
class DosePoint:
    """The top units of the SCU ranking, as many as `share` says, mean-ablated on the test split.

    Attributes:
        share: of each kind's units.
        size: the same by count and by parameters.
        behaviour: without them.
        refused: whether each harmful prompt was refused without them.
        controls: behaviour without each of some matched random sets.
        score_controls: mean refusal score without each of more of them.
    """

    share: float
    size: RoleShare
    behaviour: Behaviour
    refused: tuple[bool, ...]
    controls: tuple[Behaviour, ...]
    score_controls: tuple[float, ...]


@dataclass(frozen=True)
class HarmfulGroup:
    """Part of the harmful test prompts: share refused by the undamaged model, without the SCU, without a random twin.

    Attributes:
        by: 'phrasing' or 'category'.
        name: which.
        baseline, ablated: by the undamaged model, and without the SCU (mean ablation).
        control: without the first matched random set.
    """

    by: str
    name: str
    baseline: Estimate
    ablated: Estimate
    control: Estimate


@dataclass(frozen=True)
class HarmfulSet:
    """Another set of harmful prompts, under the same three conditions."""

    name: str
    baseline: Outcomes
    ablated: Outcomes
    control: Outcomes


@dataclass(frozen=True)
class AblateResult:
    """Stage `ablate`.

    Attributes:
        baseline: the undamaged model on the same prompts.
        baseline_refused: per harmful prompt.
        conditions: roles and their generated controls.
        score_controls: mean refusal score under each of many matched random sets, per role (mean ablation).
        shares: size of each role.
        doses: rising shares of the units that rank highest as SCU; empty where not asked for.
        groups: the harmful prompts by phrasing and by category.
        sets: other sets of harmful prompts.
    """

    baseline: Behaviour
    baseline_refused: tuple[bool, ...]
    conditions: tuple[Ablation, ...]
    score_controls: dict[str, list[float]]
    shares: dict[str, RoleShare]
    doses: tuple[DosePoint, ...] = ()
    groups: tuple[HarmfulGroup, ...] = ()
    sets: tuple[HarmfulSet, ...] = ()

    def find(self, role: str, mode: str = "mean") -> Ablation:
        """The role itself ablated in this mode."""
        return next(c for c in self.conditions if (c.role, c.mode, c.control) == (role, mode, None))

    def controls(self, role: str, mode: str = "mean") -> list[Ablation]:
        """Its generated random twins."""
        return [c for c in self.conditions if c.role == role and c.mode == mode and c.control is not None]

    def beyond_random(self, role: str, mode: str = "mean") -> Estimate:
        """Refusals lost beyond the mean of the role's random twins, share of prompts, paired."""
        own = np.array(self.find(role, mode).refused, dtype=float)
        return stats.paired_difference(self._refused_at_random(role, mode), own)

    def lost_at_random(self, role: str, mode: str = "mean") -> Estimate:
        """Refusals lost by the mean of its random twins, share of prompts."""
        return stats.mean(np.array(self.baseline_refused, dtype=float) - self._refused_at_random(role, mode))

    def _refused_at_random(self, role: str, mode: str) -> np.ndarray:
        return np.mean([c.refused for c in self.controls(role, mode)], axis=0)


@dataclass(frozen=True)
class Transplant:
    """The unaligned model with some units' activations taken from the aligned one, at every step.

    Attributes:
        name: which units.
        n: how many.
        harmful, harmless: outcomes on test prompts.
        refusal_score: mean log-odds of opening with a refusal, harmful prompts.
    """

    name: str
    n: int
    harmful: Outcomes
    harmless: Outcomes
    refusal_score: Estimate


@dataclass(frozen=True)
class Faithfulness:
    """What is left of the choice when only the highest-ranked units are kept, and all others are mean-ablated.

    Attributes:
        name: the ranking.
        shares: of each kind's units that are kept, rising.
        values: the metric above its value without any unit, as a share of the whole model's.
        area: under the curve over the share (MIB's CPR); a perfect ranking of few units comes near 1.
        distance: area between the curve and 1 (MIB's CMD); 0 is best.
        whole, none: the metric with all units and without any: mean refusal score of harmful prompts less that of
            harmless ones, in nats.
        n: how many harmful and harmless prompts; None in results of older runs, which did not keep it.
    """

    name: str
    shares: tuple[float, ...]
    values: tuple[float, ...]
    area: float
    distance: float
    whole: float
    none: float
    n: tuple[int, int] | None = None


@dataclass(frozen=True)
class SufficiencyResult:
    """Stage `sufficiency`. `transplants` is empty where there is no unaligned counterpart."""

    transplants: tuple[Transplant, ...]
    faithfulness: tuple[Faithfulness, ...]


@dataclass(frozen=True)
class StabilityResult:
    """Stage `stability`: the roles beside those of other calibration data, cut at the same sizes.

    Attributes:
        score: which score.
        reruns: bootstrap samples of the calibration prompts.
        confidence: role -> mean share of the bootstrap reruns in which its units keep it.
        sure: a unit that keeps its role in this share of reruns counts in `sure_share`.
        sure_share: role -> share of its units that do.
        compared: name of the other calibration data -> where the units of each role went.
    """

    score: str
    reruns: int
    confidence: dict[str, float]
    sure: float
    sure_share: dict[str, float]
    compared: dict[str, RoleMoves]


@dataclass(frozen=True)
class Match:
    """How a score ranks units of one kind beside their exact effect.

    Attributes:
        spearman: rank correlation; None when one of the two is the same for all units.
        overlap: share of the top 1% by exact effect that are in the score's top 1% (chance: 1%); 0 without an order.
        n: units compared.
    """

    spearman: float | None
    overlap: float
    n: int


@dataclass(frozen=True)
class Dose:
    """A score's top units, by I_S - I_U within their kind, mean-ablated on validation prompts.

    Attributes:
        share: of each kind's units.
        parameters: share of block parameters that they own.
        behaviour: what the damaged model does.
    """

    share: float
    parameters: float
    behaviour: Behaviour


@dataclass(frozen=True)
class ComparedScore:
    """One line of the comparison.

    Attributes:
        name: of the score; 'random' ranks units at random.
        seconds: the score alone; calibration data and their moments are shared by all.
        passes: forward passes over the whole calibration data that its forward work amounts to.
        safety, utility: kind -> agreement of I_S and of I_U with the exact ones.
        doses: in rising order.
        refusal_lost: largest fall of the refusal rate while the loss on own answers rises by the budget at most.
        score_lost: the same for the mean refusal score, in nats.
    """

    name: str
    seconds: float
    passes: float
    safety: dict[str, Match]
    utility: dict[str, Match]
    doses: tuple[Dose, ...]
    refusal_lost: float
    score_lost: float


@dataclass(frozen=True)
class ScoreComparison:
    """Every score beside the exact effect, and at equal utility lost.

    Attributes:
        model: its name.
        baseline: the undamaged model on the same validation prompts.
        budget: utility that may be lost, nats per token on own answers to harmless prompts.
        estimand: what the exact effect is the effect of.
        exact_prompts: prompts of each side that it was measured on.
        exact_seconds: time that it took.
        scores: one line each.
        shared: score -> score -> share of the first one's top 1% by I_S - I_U that are in the second one's.
    """

    model: str
    baseline: Behaviour
    budget: float
    estimand: str
    exact_prompts: int
    exact_seconds: float
    scores: tuple[ComparedScore, ...]
    shared: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """The score that takes most refusal at equal utility lost; the refusal score breaks ties."""
        return max(self.scores, key=lambda s: (s.refusal_lost, s.score_lost)).name
