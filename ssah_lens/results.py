"""The labelled results that studies return, records keep and figures draw. No computation here.

Rates are shares of prompts (0 to 1); refusal scores are log-odds in nats; losses are nats per token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ssah_lens.stats import Estimate

SCHEMA = 1
"""Version of `results.json`; an older run folder is read or refused by it."""


class Verdict(StrEnum):
    """What the measurement says of a hypothesis."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    NOT_SETTLED = "not settled"


@dataclass(frozen=True)
class Outcomes:
    """What became of a set of prompts."""

    refused: Estimate
    fulfilled: Estimate
    incoherent: Estimate


@dataclass(frozen=True)
class Utility:
    """What the model is still good for.

    Attributes:
        answer_perplexity: on harmless test prompts, of the answers that the undamaged model gives to them.
        written_perplexity: on the same prompts, of answers written by people.
        choices: multiple-choice accuracy; None where it was not measured.
        prose_perplexity: on prose without a chat template; None where it was not measured.
        kl: KL(undamaged || this) at the decision position of harmless prompts, nats; None for the undamaged model.
    """

    answer_perplexity: Estimate
    written_perplexity: Estimate | None = None
    choices: Estimate | None = None
    prose_perplexity: Estimate | None = None
    kl: Estimate | None = None


@dataclass(frozen=True)
class Behaviour:
    """What one model does on the test split.

    Attributes:
        harmful: outcomes on harmful prompts.
        harmless: outcomes on ordinary instructions (`refused` is over-refusal).
        twins: outcomes on the harmless twins of harmful prompts; None where not measured.
        refusal_score: mean log-odds of opening with a refusal, harmful prompts.
        utility: what else it can do.
        examples: (prompt, outcome, first characters of the response) for a few harmful prompts.
    """

    harmful: Outcomes
    harmless: Outcomes
    refusal_score: Estimate
    utility: Utility
    twins: Outcomes | None = None
    examples: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Training:
    """One training run.

    Attributes:
        losses: one per step.
        validation_loss: on held-out answers, before and after; None where not measured.
        examples: how many training examples there were.
        frozen_parameters: how many parameters were held.
        frozen_share: the same as a share of block parameters.
        unchanged: True after a bitwise comparison of all frozen parameters; None when none were frozen.
        sha256: of their bits, before and after; '' when none were frozen.
    """

    losses: tuple[float, ...]
    examples: int
    validation_loss: tuple[float, float] | None = None
    frozen_parameters: int = 0
    frozen_share: float = 0.0
    unchanged: bool | None = None
    sha256: str = ""


@dataclass(frozen=True)
class AlignResult:
    """Stage `align`. `training` is None when the given model was aligned already."""

    model: str
    unaligned: str | None
    training: Training | None
    refused_before: Estimate
    refused_after: Estimate | None


@dataclass(frozen=True)
class RefusalResult:
    """Stage `refusal`: behaviour of the aligned model and, where there is one, of the unaligned."""

    aligned: Behaviour
    unaligned: Behaviour | None
    refusal_tokens: tuple[str, ...]
    refusal_token_ids: tuple[int, ...]


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
        mode: 'mean' or 'zero'.
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
class AblateResult:
    """Stage `ablate`.

    Attributes:
        baseline: the undamaged model on the same prompts.
        baseline_refused: per harmful prompt.
        conditions: roles and their generated controls.
        score_controls: mean refusal score under each of many matched random sets, per role (mean ablation).
        shares: size of each role.
    """

    baseline: Behaviour
    baseline_refused: tuple[bool, ...]
    conditions: tuple[Ablation, ...]
    score_controls: dict[str, list[float]]
    shares: dict[str, RoleShare]

    def find(self, role: str, mode: str = "mean") -> Ablation:
        """The role itself ablated in this mode."""
        return next(c for c in self.conditions if (c.role, c.mode, c.control) == (role, mode, None))

    def controls(self, role: str, mode: str = "mean") -> list[Ablation]:
        """Its generated random twins."""
        return [c for c in self.conditions if c.role == role and c.mode == mode and c.control is not None]


@dataclass(frozen=True)
class Arm:
    """One way of fine-tuning, from the same start.

    Attributes:
        name: 'full', 'freeze SCU + top CU' or 'freeze random'.
        seed: order of the examples (and of the random set).
        training: losses, and what was frozen.
        after: behaviour afterwards.
        refused: whether each harmful prompt was refused afterwards.
    """

    name: str
    seed: int
    training: Training
    after: Behaviour
    refused: tuple[bool, ...]


@dataclass(frozen=True)
class FreezeResult:
    """Stage `freeze`."""

    before: Behaviour
    before_refused: tuple[bool, ...]
    arms: tuple[Arm, ...]


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
    patch: PatchResult | None = None


# ---- patching


@dataclass(frozen=True)
class PatchMap:
    """How far each patched activation moves the choice: 0 = the corrupted prompt's metric, 1 = the clean one's.

    Attributes:
        model: its name.
        site: 'resid', 'attn', 'mlp', 'head' or 'neuron'.
        noising: False: clean activations put into the corrupted run; True: corrupted ones into the clean run.
        metric: what is read at the decision position; `refusing` and `fulfilling` are the tokens that it compares.
        estimand: what was replaced, and where.
        axes: ('layer', 'pos'), ('layer', 'unit') or ('layer', 'unit', 'pos').
        labels: one text per index of each axis; a position is its token where all prompts share it (both tokens of a
            single pair where it differs), else its place from the end.
        values: effect as nested lists over the axes; None where no pair has such a position.
        low, high: 95% bootstrap interval over pairs, shaped like `values`; None for fewer than two pairs.
        clean, corrupted: the metric of the two unpatched runs.
        n: pairs.
        cells, cells_run: how many there are, and how many had to be run (the others cannot differ).
        method: 'exact', or the name of what approximates it.
    """

    model: str
    site: str
    noising: bool
    metric: str
    refusing: tuple[str, ...]
    fulfilling: tuple[str, ...]
    estimand: str
    axes: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]
    values: list
    low: list | None
    high: list | None
    clean: Estimate
    corrupted: Estimate
    n: int
    cells: int
    cells_run: int
    method: str = "exact"


@dataclass(frozen=True)
class EffectAgreement:
    """Two effects of the same units or cells: a cheap one, or one of another estimand, beside what judges it.

    Attributes:
        name: what is judged.
        against: what judges it.
        estimand: what was replaced by what, and where.
        metric: what was read.
        labels: 'neuron 3.141', 'head 7.2' (layer, index); the same order as `exact` and `guess`.
        exact, guess: change of the metric, mean over prompts; the effect of a cell, for a map.
        spearman: rank correlation; None when one of the two is the same everywhere.
        overlap: top share by size -> how much of the exact top is in the guess's top.
        missed: of the exact top, what the guess does not rank there, strongest first.
        n: prompts, or pairs.
    """

    name: str
    against: str
    estimand: str
    metric: str
    labels: tuple[str, ...]
    exact: tuple[float, ...]
    guess: tuple[float, ...]
    spearman: float | None
    overlap: dict[float, float]
    missed: tuple[str, ...]
    n: int


@dataclass(frozen=True)
class PatchResult:
    """Stage `patch`.

    Attributes:
        maps: exact maps, one per site.
        cells: attribution patching of each map's cells beside the exact ones.
        units: attribution patching, and integrated gradients, of a random sample of units beside their exact effect.
        positions: effect at the decision position beside effect at all positions, on the same units.
    """

    maps: tuple[PatchMap, ...]
    cells: tuple[EffectAgreement, ...]
    units: tuple[EffectAgreement, ...]
    positions: EffectAgreement


# ---- what a unit responds to


@dataclass(frozen=True)
class Snippet:
    """A unit's activation on a stretch of text: one value per token; `peak` is the strongest token."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    peak: int


@dataclass(frozen=True)
class UnitContext:
    """Where one unit is most active, and what it writes.

    Attributes:
        kind, layer, index: which unit ('mlp' or 'head').
        direct: what one unit of its mean activation adds to the refusing minus the fulfilling logits, straight through
            the unembedding; None where that is not defined.
        examples: name of a prompt set -> the strongest stretches, strongest first. For a head, the norm of its output.
        neighbours: (kind, layer, index, cosine) of the units that write most alike.
    """

    kind: str
    layer: int
    index: int
    direct: float | None
    examples: dict[str, tuple[Snippet, ...]]
    neighbours: tuple[tuple[str, int, int, float], ...] = ()


# ---- which score is best


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
    """

    model: str
    baseline: Behaviour
    budget: float
    estimand: str
    exact_prompts: int
    exact_seconds: float
    scores: tuple[ComparedScore, ...]

    @property
    def best(self) -> str:
        """The score that takes most refusal at equal utility lost; the refusal score breaks ties."""
        return max(self.scores, key=lambda s: (s.refusal_lost, s.score_lost)).name


# ---- fine-tuning and transfer


@dataclass(frozen=True)
class CurvePoint:
    """A look at the model while it was fine-tuned.

    Attributes:
        step: steps done.
        refused: share of the curve's harmful validation prompts that were refused.
        validation_loss: on held-out rows, nats per token; None without any.
    """

    step: int
    refused: float
    validation_loss: float | None


@dataclass(frozen=True)
class RoleMoves:
    """Where the units of each role went, at fixed sizes.

    Attributes:
        matrix: role before -> role after -> share of all units.
        counts: the same as numbers of units.
        held: share of a role's units that kept the role; a role without units is left out.
        chance: what random roles of the same sizes would hold.
    """

    matrix: dict[str, dict[str, float]]
    counts: dict[str, dict[str, int]]
    held: dict[str, Estimate]
    chance: dict[str, float]


# ---- what single commands answer


@dataclass(frozen=True)
class RefusalReport:
    """`ssah-lens refusal`."""

    model: str
    judge: str
    max_new_tokens: int
    harmful: Outcomes
    harmless: Outcomes | None


@dataclass(frozen=True)
class UnitsReport:
    """`ssah-lens units`; `seconds` is the time of the score alone."""

    out: str
    score: str
    seconds: float
    roles: dict[str, RoleShare]
    choice: UnitsResult


@dataclass(frozen=True)
class AblateReport:
    """`ssah-lens ablate`; `controls` are matched random sets, `score_controls` their mean refusal scores only."""

    roles: list[str]
    mode: str
    share: RoleShare
    baseline: Behaviour
    ablated: Behaviour
    controls: list[Behaviour]
    score_controls: list[float]


@dataclass(frozen=True)
class Checked:
    """Safety and task before or after training."""

    harmful: Outcomes
    harmless: Outcomes
    validation_loss: float | None


@dataclass(frozen=True)
class Frozen:
    """What was held in training.

    Attributes:
        parameters: how many.
        share: of block parameters.
        unchanged: True only after a bitwise comparison; None when nothing was held.
        sha256: of their bits, before and after; '' when nothing was held.
    """

    parameters: int
    share: float
    unchanged: bool | None
    sha256: str = ""


@dataclass(frozen=True)
class FinetuneReport:
    """`ssah-lens finetune`.

    Attributes:
        out: folder of the tuned model, or of the adapter.
        before, after: safety and task.
        train_loss: nats per response token, one per step.
        frozen: what was held.
        method: how it was tuned.
        lr: peak learning rate.
        trained_parameters: how many the optimizer moved.
        curve: refusal and loss during training, when asked for.
    """

    out: str
    before: Checked
    after: Checked
    train_loss: tuple[float, ...]
    frozen: Frozen
    method: str = "full"
    lr: float = 0.0
    trained_parameters: int = 0
    curve: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True)
class AlignReport:
    """`ssah-lens align`."""

    out: str
    before: Checked
    after: Checked
    train_loss: tuple[float, ...]


@dataclass(frozen=True)
class TransferReport(RoleMoves):
    """`ssah-lens transfer`: where the units went from before to after fine-tuning.

    Attributes:
        score: which score cut the roles.
        n_units: all units of the model.
        null: the same from before to the same model scored on another calibration sample; None when not given.
    """

    score: str
    n_units: int
    null: RoleMoves | None
