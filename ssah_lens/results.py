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
        choices_by_task: the accuracy of each sub-test; None where multiple choice was not measured.
    """

    answer_perplexity: Estimate
    written_perplexity: Estimate | None = None
    choices: Estimate | None = None
    prose_perplexity: Estimate | None = None
    kl: Estimate | None = None
    choices_by_task: dict[str, Estimate] | None = None


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
    """

    name: str
    shares: tuple[float, ...]
    values: tuple[float, ...]
    area: float
    distance: float
    whole: float
    none: float


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


@dataclass(frozen=True)
class TunedArm:
    """One way of fine-tuning on one data set, from the same start.

    Attributes:
        method: its label: 'full', 'freeze SCU + top CU', 'freeze top 10%', 'mix-refusals', ...
        data: name of the data set.
        seed: order of the examples (and of a random set).
        equal: what this run has in common with `full` on the same data and seed: 'steps' or 'loss' (on validation).
        reached: False when even twice the steps did not bring the validation loss down to that of `full`.
        steps: optimizer steps that were made.
        lr: peak learning rate.
        held: share of block parameters that were held; None for an adapter, which leaves all of them alone.
        unchanged: True after a bitwise comparison of what was held; None when nothing was.
        train_loss: mean of the last quarter of the steps, nats per response token; None before any.
        validation_loss: on held-out answers of the same data, nats per token.
        exact_tokens: share of those answers' tokens that are the model's first choice.
        validation_refused: share of harmful validation prompts refused: what choices are made by.
        asked: way of asking ('plain', 'prefilled', 'role play 1', ...) -> outcomes on harmful test prompts.
        refused: whether each harmful test prompt, asked plainly, was refused.
        harmless: outcomes on ordinary test instructions.
        utility: what else the model can do.
    """

    method: str
    data: str
    seed: int
    equal: str
    reached: bool
    steps: int
    lr: float
    held: float | None
    unchanged: bool | None
    train_loss: float | None
    validation_loss: float
    exact_tokens: float
    validation_refused: float
    asked: dict[str, Outcomes]
    refused: tuple[bool, ...]
    harmless: Outcomes
    utility: Utility


@dataclass(frozen=True)
class TuningResult:
    """Stage `tuning`: `before` has one entry per data set (its losses are of that set), all of the same model."""

    before: tuple[TunedArm, ...]
    arms: tuple[TunedArm, ...]


@dataclass(frozen=True)
class BudgetArm:
    """One way of aligning the unaligned model.

    Attributes:
        name: 'all', 'RU only' or 'random only'.
        seed: order of the examples (and of the random set).
        trained_share: share of block parameters that were trained.
        training: losses, and what was held.
        after: behaviour; its utility is measured against the unaligned model's own answers.
        refused: whether each harmful test prompt was refused.
        tax: rise of the loss on the unaligned model's own answers to ordinary instructions, nats per token.
    """

    name: str
    seed: int
    trained_share: float
    training: Training
    after: Behaviour
    refused: tuple[bool, ...]
    tax: float


@dataclass(frozen=True)
class BudgetResult:
    """Stage `budget`: `unaligned` is the start of every arm."""

    unaligned: Behaviour
    arms: tuple[BudgetArm, ...]


@dataclass(frozen=True)
class Restored:
    """Fine-tuned model with some units' parameters put back to what they were before.

    Attributes:
        units: which: 'SCU that lost the role', 'SCU that kept it', or a random twin of either.
        n: how many units.
        refused: share of harmful test prompts.
    """

    units: str
    n: int
    refused: Estimate


@dataclass(frozen=True)
class TransferResult:
    """Stage `transfer`.

    Attributes:
        score: which score cut the roles.
        n_units: all units of the model.
        refused: name of a model ('before', 'tuned', 'tuned safely') -> share of harmful test prompts refused.
        tuned: role moves by fine-tuning with nothing held.
        safe: role moves by fine-tuning that leaves safety alone (refusals mixed in).
        null: role moves of the same model between two calibration samples.
        restored: which units' parameters bring refusals back.
    """

    score: str
    n_units: int
    refused: dict[str, Estimate]
    tuned: RoleMoves
    safe: RoleMoves
    null: RoleMoves
    restored: tuple[Restored, ...]


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


# ---- stage `direction`


@dataclass(frozen=True)
class Readout:
    """How well one thing is read off one direction, on test prompts.

    Attributes:
        target: 'choice' (the model refused or not, all prompts) or 'harm' (the prompt's label, matched pairs).
        mean_difference: AUROC of the difference of means, [layer][position].
        probe: AUROC of the regularised linear probe, [layer][position].
        layer, position: where the difference of means separates best on validation prompts (position -1: decision).
        auroc: there, on test prompts, of the difference of means.
        probe_auroc: there, of the probe.
        null: the same with the labels of every split shuffled, the cell chosen the same way; one per shuffle.
        transfer: the same projection on borderline prompts, scored against the same target.
        other: the same projection and prompts, scored against the other target.
        within: 'harm': the choice among harmless prompts only; 'choice': harm among the refused prompts only. Each says
            whether the direction reads more than its own target. None where a side has too few prompts.
    """

    target: str
    mean_difference: list[list[float]]
    probe: list[list[float]]
    layer: int
    position: int
    auroc: Estimate
    probe_auroc: Estimate
    null: tuple[float, ...]
    transfer: Estimate | None
    other: Estimate | None
    within: Estimate | None


@dataclass(frozen=True)
class CandidateDirection:
    """One candidate of the published selection, on validation prompts (scores are mean refusal scores).

    Attributes:
        layer, position: whose difference of means; position -1 is the decision position.
        norm: its length.
        bypass: refusal score of harmful prompts without it.
        induce: refusal score of harmless prompts with it added.
        kl: on harmless prompts without it, nats.
        allowed: whether the published conditions hold.
    """

    layer: int
    position: int
    norm: float
    bypass: float
    induce: float
    kl: float
    allowed: bool


@dataclass(frozen=True)
class Steered:
    """What the model does with one change along a direction, on test prompts.

    Attributes:
        name: e.g. 'ablated', 'added', 'ablated at the prompt'.
        control: None for the direction itself, else the seed of the random direction of the same length.
        harmful: outcomes on harmful prompts; None where they were not asked.
        harmless: outcomes on ordinary instructions; None where they were not asked.
        refusal_score: of the harmful prompts.
        kl: KL(undamaged || this) at the decision position of ordinary instructions, nats.
        refused: whether each harmful prompt was refused.
        refused_harmless: whether each ordinary instruction was.
        examples: (prompt, outcome, first characters of the response).
    """

    name: str
    control: int | None
    harmful: Outcomes | None
    harmless: Outcomes | None
    refusal_score: Estimate | None
    kl: Estimate | None
    refused: tuple[bool, ...] = ()
    refused_harmless: tuple[bool, ...] = ()
    examples: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Flips:
    """Decisions flipped by an interchange on one basis, on test pairs taken both ways.

    Attributes:
        basis: 'difference of means', 'probe', 'DAS', 'whole state', or a control.
        rank: its dimensions.
        flipped: share of directed pairs that took the source's choice; of arbitrary labels, share of train pairs that
            took theirs (what the method's freedom alone reaches).
        to_fulfil, to_refuse: the same, of refused bases and of answered bases; None for the untrained model
            and for arbitrary labels.
        fit: share of its own train targets that a trained basis reaches.
        hits: per directed pair (random subspaces: share of the draws).
    """

    basis: str
    rank: int
    flipped: Estimate
    to_fulfil: float | None
    to_refuse: float | None
    fit: float | None
    hits: tuple[float, ...]


@dataclass(frozen=True)
class Interchange:
    """One dimension or several, at the first block where the choice has arrived at the decision position.

    Attributes:
        pairs: 'twins' (token-aligned pairs of one topic) or 'unmatched' (a harmful prompt and an ordinary one).
        layer: whose input.
        arrived: whether the whole state flips nearly all decisions there.
        n_train, n_test: pairs that the model decides differently.
        layers: blocks that were looked at.
        whole, line: share of train pairs flipped there by the whole state and by the difference of means.
        flips: bases and controls.
        cosines: of each one-dimensional basis with the extracted direction.
    """

    pairs: str
    layer: int
    arrived: bool
    n_train: int
    n_test: int
    layers: tuple[int, ...]
    whole: list[float]
    line: list[float]
    flips: tuple[Flips, ...]
    cosines: dict[str, float]

    def find(self, basis: str, rank: int | None = None) -> Flips | None:
        """The flips of this basis, if it was measured."""
        return next((f for f in self.flips if f.basis == basis and rank in (None, f.rank)), None)


@dataclass(frozen=True)
class Distances:
    """The paper's distance probe of one model: cosine distance to the clean query, mean over prompts and strings.

    Attributes:
        model: 'aligned' or 'unaligned'.
        tokens: response tokens k.
        refusing, fulfilling: [block][k].
        gap, low, high: D(fulfilling) - D(refusing) with its band over prompts, [block][k]; positive = nearer
            to refusing.
        n: prompts.
    """

    model: str
    tokens: tuple[int, ...]
    refusing: list[list[float]]
    fulfilling: list[list[float]]
    gap: list[list[float]]
    low: list[list[float]]
    high: list[list[float]]
    n: int


@dataclass(frozen=True)
class Forced:
    """Refusals after a forced opening, judged on what the model adds.

    Attributes:
        tokens: k, how many tokens of the opening were forced.
        refused: share of prompts (over all openings) that the model then refuses.
        incoherent: share that is noise.
        hits: per prompt, share of the openings after which it was refused.
    """

    tokens: int
    refused: Estimate
    incoherent: Estimate
    hits: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """A mean with its band, step by step along a response."""

    name: str
    mean: list[float]
    low: list[float]
    high: list[float]
    n: int


@dataclass(frozen=True)
class Onset:
    """How deep the alignment is.

    Attributes:
        kl: KL(aligned || unaligned) per response token, on own refusals and on own answers; empty without an unaligned
            model.
        kl_first: share of the summed KL on refusals that lies in the first tokens (`kl_tokens`).
        kl_tokens: how many those are.
        prefilled: harmful prompts, after k fulfilling tokens; k = 0 is no opening.
        shuffled: the control, the same tokens in random order.
        forced_refusal: unaligned model, harmful and ordinary prompts made to open with a refusal, and neither:
            (name, share refused).
        projections: on the direction, from the decision position along refusals and answers.
    """

    kl: tuple[Curve, ...]
    kl_first: float | None
    kl_tokens: int
    prefilled: tuple[Forced, ...]
    shuffled: tuple[Forced, ...]
    forced_refusal: tuple[tuple[str, Estimate], ...]
    projections: tuple[Curve, ...]


@dataclass(frozen=True)
class ChainHead:
    """A head that writes the choice.

    Attributes:
        layer, head: which.
        contribution: to the logit difference, harmful minus harmless prompts.
        harmful, harmless: attention of the decision position on (template, instruction, post-instruction) tokens.
    """

    layer: int
    head: int
    contribution: float
    harmful: tuple[float, ...]
    harmless: tuple[float, ...]


@dataclass(frozen=True)
class Chain:
    """From prompt to choice: contributions to the refuse-minus-fulfil logit, harmful minus harmless prompts.

    Attributes:
        refusing, fulfilling: the first tokens on each side, as text.
        embedding: of the decision position's own token (the same for all prompts: about 0).
        attention, mlp: per layer.
        heads: per layer and head; empty where a norm stands between heads and residual stream.
        lens_harmful, lens_harmless: logit difference read off every block's input and the last output.
        total: mean logit difference, harmful minus harmless; embedding + attention + mlp add up to it.
        top: the strongest heads.
        n: prompts on each side.
    """

    refusing: tuple[str, ...]
    fulfilling: tuple[str, ...]
    embedding: float
    attention: list[float]
    mlp: list[float]
    heads: list[list[float]]
    lens_harmful: list[float]
    lens_harmless: list[float]
    total: float
    top: tuple[ChainHead, ...]
    n: int


@dataclass(frozen=True)
class BeforeAlignment:
    """The same direction in the unaligned counterpart.

    Attributes:
        cosine: of the harm direction (difference of means of matched pairs) there and here, at the chosen cell.
        harm_auroc: of the aligned model's harm direction on the unaligned model's states, test pairs.
        own_harm_auroc: of its own harm direction.
        added: refusals of harmful prompts when the aligned model's refusal direction is added to it.
    """

    cosine: float
    harm_auroc: Estimate
    own_harm_auroc: Estimate
    added: Outcomes


@dataclass(frozen=True)
class DirectionResult:
    """Stage `direction` (H1 to H3).

    Attributes:
        layer, position: where the direction comes from (block input; position -1 is the decision position).
        positions: text of the tokens after the instruction.
        threshold: refusal score above which the model counts as refusing; `agreement`: balanced accuracy of that
            border on train prompts (None: all on one side).
        refused_train: how many train prompts were refused, of how many; the direction is refused harmful minus
            answered harmless prompts, or harmful minus harmless ones where too few were refused (`by_choice` False).
        vector: the direction in its own length.
        candidates: the whole selection table; `relaxed`: no candidate met the published conditions.
        steered: the undamaged model ('undamaged') and every change, with controls.
        readouts: 'choice' (where there is one) and 'harm'.
        interchange: one per kind of pairs that the model decides differently.
        skipped: what was not measured, and why.
    """

    layer: int
    position: int
    positions: tuple[str, ...]
    threshold: float
    agreement: float | None
    refused_train: tuple[int, int]
    by_choice: bool
    vector: tuple[float, ...]
    candidates: tuple[CandidateDirection, ...]
    relaxed: bool
    base_scores: tuple[float, float]
    steered: tuple[Steered, ...]
    readouts: tuple[Readout, ...]
    interchange: tuple[Interchange, ...]
    distances: tuple[Distances, ...]
    onset: Onset
    chain: Chain
    before: BeforeAlignment | None
    skipped: tuple[str, ...] = ()

    def find(self, name: str) -> Steered | None:
        """One change along the direction itself."""
        return next((s for s in self.steered if s.name == name and s.control is None), None)

    def controls(self, name: str) -> list[Steered]:
        """The same change along random directions."""
        return [s for s in self.steered if s.name == name and s.control is not None]

    def readout(self, target: str) -> Readout | None:
        """'choice' or 'harm'."""
        return next((r for r in self.readouts if r.target == target), None)


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


@dataclass(frozen=True)
class ContextsResult:
    """Stage `contexts`: what the SCU that rank highest respond to and write, highest first."""

    units: tuple[UnitContext, ...]


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
class DirectionReport:
    """`ssah-lens direction`.

    Attributes:
        layer, position: where the direction comes from.
        auroc: held-out AUROC of the read-outs, e.g. 'choice' and 'harm' (difference of means), and of the probe.
        undamaged, ablated, added: behaviour without a change, with the direction projected out, with it added.
        controls: 'ablated' and 'added' -> the same along random directions.
        interchange: rank -> basis -> share of decisions flipped; controls beside it.
        verdicts: H1 to H3.
        direction: everything else.
    """

    out: str
    layer: int
    position: int
    auroc: dict[str, Estimate]
    undamaged: Steered
    ablated: Steered
    added: Steered
    controls: dict[str, list[Steered]]
    interchange: dict[str, dict[str, Estimate]]
    verdicts: dict[str, Verdict]
    direction: DirectionResult


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
