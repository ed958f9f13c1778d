"""A direction taken out of the residual stream, or added to it: candidates, ways, and what the model then does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from ssah_lens.results.basics import Outcomes
from ssah_lens.stats import Estimate

T = TypeVar("T")
TO_ZERO, TO_MEAN, TO_MEAN_ONWARD, TO_MEAN_HERE = "zero", "mean", "mean from its block on", "mean at its block"
"""Ways to take a direction out, the published one first: nothing is left along it, or the mean over answered harmless
train prompts (per position class); in all that blocks read and write, from the input of its own block on, or in that
input alone."""
UNDAMAGED, ABLATED, ADDED = "undamaged", "ablated", "added"
AS_PUBLISHED = "ablated to zero everywhere"
"""The published ablation, beside the gentler one that validation chose."""
AT_PROMPT, AT_RESPONSE = "ablated at the prompt", "ablated at the response"


@dataclass(frozen=True)
class CandidateDirection:
    """One candidate of the published selection, on validation prompts (scores are mean refusal scores).

    Attributes:
        layer: whose input.
        position: counted from the end: -1 is the decision position.
        norm: length of the difference of means.
        bypass: refusal score of harmful prompts without the direction.
        induce: refusal score of harmless prompts with the vector added.
        kl: without it, on harmless prompts that the undamaged model is going to answer, nats.
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
class TriedAblation:
    """A way to take the chosen direction out, tried on validation prompts.

    Attributes:
        name: `TO_ZERO`, `TO_MEAN`, `TO_MEAN_ONWARD` or `TO_MEAN_HERE`.
        refused: share of harmful prompts refused, by refusal score.
        bypass: their mean refusal score.
        kl: KL on the harmless prompts that the undamaged model is going to answer, nats.
    """

    name: str
    refused: float
    bypass: float
    kl: float


@dataclass(frozen=True)
class Steered:
    """What the model does with one change along a direction, on test prompts.

    Attributes:
        name: e.g. 'ablated', 'added', 'ablated at the prompt'.
        control: None for the direction itself, else the seed of the random direction of the same length.
        harmful: outcomes on harmful prompts; None where they were not asked.
        harmless: outcomes on ordinary instructions; None where they were not asked.
        refusal_score: of the harmful prompts.
        kl: KL(undamaged || this) at the decision position of the ordinary instructions that the undamaged model is
            going to answer, nats.
        refused: whether each harmful prompt was refused.
        refused_harmless: whether each ordinary instruction was.
        examples: (prompt, outcome, first characters of the response).
        kl_all: the same KL of all ordinary instructions, those included that the undamaged model is about to refuse.
        choices: share of multiple-choice items that are right; None where utility was not measured.
        answer_perplexity: of the undamaged model's own answers to the ordinary instructions that it is going to answer.
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
    kl_all: Estimate | None = None
    choices: Estimate | None = None
    answer_perplexity: Estimate | None = None

    @property
    def on_harmful(self) -> Outcomes:
        """`harmful`, of a change that they were asked with; LookupError for another."""
        return there(self.harmful, f"harmful prompts with '{self.name}'")

    @property
    def on_harmless(self) -> Outcomes:
        """`harmless`, of a change that they were asked with; LookupError for another."""
        return there(self.harmless, f"ordinary instructions with '{self.name}'")

    @property
    def damage(self) -> Estimate:
        """KL on all ordinary instructions; results of older runs hold that of the answered ones alone."""
        return there(self.kl_all or self.kl, f"KL with '{self.name}'")


def there(value: T | None, what: str) -> T:
    """The value; LookupError where `what` was not measured."""
    if value is None:
        raise LookupError(f"{what}: not measured")
    return value
