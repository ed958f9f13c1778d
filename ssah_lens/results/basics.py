"""What every stage reports: outcomes of prompts, what a model is still good for, how training went."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ssah_lens.stats import Estimate


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
        examples: how many different training examples were read.
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
