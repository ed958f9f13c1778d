"""Fine-tuning with and without frozen units, alignment on a budget, roles before and after."""

from __future__ import annotations

from dataclasses import dataclass

from ssah_lens.results.basics import Behaviour, Outcomes, Training, Utility
from ssah_lens.stats import Estimate


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
        units: which: 'SCU that lost the role', 'SCU that kept it', 'SCU + top CU', a random twin of these; 'all heads',
            'all neurons', all units of a third of the depth ('blocks 0-9').
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
