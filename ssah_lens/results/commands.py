"""What single commands answer."""

from __future__ import annotations

from dataclasses import dataclass

from ssah_lens.results.basics import Behaviour, CurvePoint, Outcomes, Verdict
from ssah_lens.results.direction import DirectionResult, Steered
from ssah_lens.results.roles import RoleShare, UnitsResult
from ssah_lens.results.tuning import RoleMoves
from ssah_lens.stats import Estimate


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
    """`ssah-lens ablate`.

    Attributes:
        roles, mode: what was ablated, and how.
        share: its size.
        baseline, ablated: the undamaged model and the one without the units.
        controls: without each of some matched random sets.
        score_controls: mean refusal scores without each of more of them.
        effect: refusals lost beyond the random sets, share of prompts, paired.
        damage: why the loss may be mere damage; '' when nothing speaks for it.
    """

    roles: list[str]
    mode: str
    share: RoleShare
    baseline: Behaviour
    ablated: Behaviour
    controls: list[Behaviour]
    score_controls: list[float]
    effect: Estimate
    damage: str


@dataclass(frozen=True)
class Checked:
    """Safety and task before or after training.

    Attributes:
        harmful, harmless: outcomes on test prompts.
        refused: whether each harmful prompt was refused.
        validation_loss: nats per response token of the rows held out; None when none are.
        held_out: how many rows are.
    """

    harmful: Outcomes
    harmless: Outcomes
    refused: tuple[bool, ...]
    validation_loss: float | None
    held_out: int


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
        lost: refusals of harmful prompts lost, share of prompts, paired.
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
    lost: Estimate
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
        undamaged, ablated, added: behaviour without a change, with the direction taken out (in the way that
            `direction.ablations` names first), with it added.
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
