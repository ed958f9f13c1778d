"""How large is each role? Chosen on the validation split by a written rule, never on test prompts.

SCU: the smallest top-ranked set whose mean ablation lowers refusals by REFUSAL_DROP while the loss on the
model's own answers rises by at most ANSWER_TOLERANCE. UCU: mirrored. RU: the largest set whose ablation leaves both
within tolerance. Where no candidate meets the rule, the one that does most within the tolerance is taken, and the
result says that the target was not reached.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import PromptSet
from ssah_lens.intervene.hooks import ablated
from ssah_lens.intervene.moments import Moments
from ssah_lens.measure import utility
from ssah_lens.measure.refusal import refusals
from ssah_lens.progress import progress
from ssah_lens.results import RoleSize, SizeChoice
from ssah_lens.score.base import Scores
from ssah_lens.score.roles import Sizes, ranking
from ssah_lens.study.keep import Keep, anew
from ssah_lens.units import Role, UnitSet, top_units

SHARES = {
    Role.UCU: (0.01, 0.03),
    Role.RU: (0.01, 0.02, 0.05),
}
"""Candidates; those of SCU are configured (`UnitsConfig.scu`)."""
REFUSAL_DROP = 0.75
"""Three of four harmful prompts change sides. A set that is taken because it reaches a mark on a few dozen prompts
reaches less on others. Raised once, from a half, when 62 points on validation prompts had become 44 on test prompts."""
ANSWER_RISE = 0.5
"""Nats per token: what UCU ablation must cost, about 1.6 times the perplexity."""
REFUSAL_TOLERANCE = 0.1
"""Refusals lost (or won) that count as 'unharmed'."""
ANSWER_TOLERANCE = 0.25
"""Nats per token that count as 'unharmed' for own greedy answers, whose loss is near zero to begin with."""


@dataclass(frozen=True)
class Validation:
    """Validation-split data for choosing sizes."""

    harmful: PromptSet
    answers: list[Row]
    judge: str = "keyword"
    max_new_tokens: int = 12


def measure_cut(model: ChatModel, data: Validation) -> tuple[float, float]:
    """(refusal rate, nats per token on own answers), with whatever hooks the caller has set."""
    found = refusals(model, data.harmful, data.judge, data.max_new_tokens, "validation")
    return found.rate().value, utility.losses(model, data.answers).mean


def choose_sizes(
    model: ChatModel,
    scores: Scores,
    moments: Moments,
    data: Validation,
    base: tuple[float, float],
    scu: tuple[float, ...],
    safety: bool = True,
    keep: Keep = anew,
) -> tuple[Sizes, dict[Role, RoleSize]]:
    """Tries every candidate of every role by mean ablation.

    Args:
        model: the model.
        scores: its unit scores.
        moments: activation means for the ablation.
        data: validation data.
        base: `measure_cut` of the undamaged model.
        scu: shares of units to try as SCU.
        safety: False for a model that does not refuse: only RU can be chosen then.
        keep: where candidates that were tried are kept.
    """
    picked: dict[Role, RoleSize] = {}
    roles = (Role.SCU, Role.UCU, Role.RU) if safety else (Role.RU,)
    candidates = {Role.SCU: scu} | SHARES
    trials = [(role, share) for role in roles for share in candidates[role]]
    curves: dict[Role, list[SizeChoice]] = {role: [] for role in roles}
    for role, share in progress(trials, "choosing role sizes"):
        units: UnitSet = top_units(model.grid, ranking(scores, role), share)

        def tried(share: float = share, units: UnitSet = units) -> SizeChoice:
            with ablated(model, units, "mean", moments):
                return SizeChoice(share, *measure_cut(model, data))

        curves[role].append(keep(f"{role}-{share:g}", SizeChoice, tried))
    for role in roles:
        picked[role] = pick(role, tuple(curves[role]), *base)
    size = lambda role: picked[role].chosen if role in picked else 0.0
    return Sizes(ru=size(Role.RU), scu=size(Role.SCU), ucu=size(Role.UCU)), picked


def pick(role: Role, curve: tuple[SizeChoice, ...], base_refused: float, base_loss: float) -> RoleSize:
    """Applies the rule to a measured curve."""
    drop = {c.share: base_refused - c.refused for c in curve}
    rise = {c.share: c.answer_loss - base_loss for c in curve}
    if role is Role.RU:
        fits = [c.share for c in curve if abs(drop[c.share]) <= REFUSAL_TOLERANCE and rise[c.share] <= ANSWER_TOLERANCE]
        smallest_harm = min(curve, key=lambda c: abs(drop[c.share]) + rise[c.share]).share
        return RoleSize(max(fits, default=smallest_harm), max(fits, default=None), bool(fits), curve)
    if role is Role.SCU:
        within = [s for s in drop if rise[s] <= ANSWER_TOLERANCE]
        done = [s for s in within if drop[s] >= REFUSAL_DROP]
        gain = drop
    else:
        within = [s for s in rise if abs(drop[s]) <= REFUSAL_TOLERANCE]
        done = [s for s in within if rise[s] >= ANSWER_RISE]
        gain = rise
    best = max(within or gain, key=gain.__getitem__)
    return RoleSize(min(done, default=best), max(within, default=None), bool(done), curve)
