"""Plain sentences computed from results. They say what was measured and no more: a difference is called one only where
the interval of the paired difference leaves zero out, and the verdict is left to the scorecard's rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssah_lens import stats
from ssah_lens.results import (
    TO_MEAN,
    TO_MEAN_HERE,
    TO_MEAN_ONWARD,
    TO_ZERO,
    AblateResult,
    Ablation,
    AlignResult,
    Arm,
    Faithfulness,
    FreezeResult,
    RefusalResult,
    UnitsResult,
)
from ssah_lens.show.text import clean, count, listed, number, percent, percents, point_interval
from ssah_lens.stats import Estimate

NOISE = 0.1
"""Share of incoherent responses from which on a lost refusal may be damage."""
LEARNED_LESS = 0.02
"""Nats per token of validation loss from which on a method counts as having learned less."""
ABLATION_WORDS = {
    TO_ZERO: "nothing is left along it in any block (as published)",
    TO_MEAN: "the mean of answered harmless train prompts is left along it in every block",
    TO_MEAN_ONWARD: "the mean of answered harmless train prompts is left along it from the input of its own block on",
    TO_MEAN_HERE: "the mean of answered harmless train prompts is left along it in its own block alone",
}
"""Ways to take a direction out (`TriedAblation`)."""
ENDS = 5
"""Steps averaged at each end of a loss curve."""
FULL, FROZEN, RANDOM = "full", "freeze SCU + top CU", "freeze random"


def compared(curve: Faithfulness) -> str:
    """The prompts whose refusal scores a curve of faithfulness compares."""
    if curve.n is None:
        return "harmful and harmless prompts"
    return "{} harmful and {} harmless prompts".format(*curve.n)


def align(r: AlignResult) -> tuple[str, ...]:
    """Who aligned the model, and what that did to refusals."""
    before = f"The given model, {r.model}, refuses {percents(r.refused_before)} of harmful validation prompts."
    if r.training is None:
        if r.unaligned:
            return (f"{before} It was studied as given, beside its unaligned counterpart, {r.unaligned}.",)
        return (f"{before} That counts as aligned here (align.aligned_at), so it was studied as given.",)
    losses = r.training.losses
    trained = f"It was taught to refuse with {count(r.training.examples, 'example')} in {count(len(losses), 'step')}"
    if len(losses) >= 2 * ENDS:
        first, last = (number(float(np.mean(part))) for part in (losses[:ENDS], losses[-ENDS:]))
        trained += f"; the training loss went from {first} to {last} nats per token (means of {ENDS} steps)"
    if r.refused_after is None:
        return (f"{before} {trained}.",)
    after = f"Afterwards it refuses {percents(r.refused_after)}."
    if not _above(r.refused_after, r.refused_before):
        after += " The two intervals overlap: so few prompts do not show that training raised refusals."
    return (f"{before} {trained}. {after} All that follows studies the model so aligned.",)


def refusal(r: RefusalResult) -> tuple[str, ...]:
    """What is refused, by whom, and what alignment cost."""
    a, u = r.aligned, r.unaligned
    first = (
        f"The aligned model refuses {percents(a.harmful.refused)} of harmful test prompts and "
        f"{percents(a.harmless.refused)} of ordinary instructions."
    )
    if u is not None:
        first += f" The unaligned model refuses {percents(u.harmful.refused)} of the harmful ones."
    out = [first]
    if a.twins is not None:
        twins = f"Of the harmless twins, which share a harmful prompt's topic, it refuses {percents(a.twins.refused)}."
        if _above(a.twins.refused, a.harmless.refused):
            twins += " That is more than of ordinary instructions, which suggests that the topic alone draws refusals."
        out.append(twins)
    for name, b in (("aligned", a), ("unaligned", u)):
        if b is not None and b.harmful.incoherent.value > NOISE:
            out.append(
                f"{percent(b.harmful.incoherent)} of the {name} model's responses to harmful prompts are incoherent, "
                "neither refusal nor answer."
            )
    if r.refusal_tokens:
        tokens = ", ".join(f"“{clean(t.strip(), 20)}”" for t in r.refusal_tokens[:12])
        out.append(f"Refusals were recognised by their first token ({tokens}) for the refusal score.")
    return tuple(out)


def units(r: UnitsResult) -> tuple[str, ...]:
    """How units were scored and cut, what the cut did not reach, where the units are."""
    out = [
        f"Each of {sum(s.n for s in r.roles.values()):,} units was scored by “{r.score}” on {r.calibration} harmful "
        f"training prompts and as many harmless ones, in {r.seconds:,.0f} s. The sizes of the roles were chosen by "
        f"mean ablation on {count(r.validation, 'validation prompt')}."
    ]
    missed = [name for name, size in r.sizes.items() if not size.reached]
    if missed:
        out.append(
            f"For {listed(missed)} no candidate size met the written target. The size shown is the best that was "
            "tried: read results for such a role as an attempt, not as proof that the role exists."
        )
    if sum(r.by_layer.get("SCU", ())):
        out.append(where(r))
    return tuple(out)


def where(r: UnitsResult, role: str = "SCU") -> str:
    """The layer that holds most units of a role, and the layers of its middle half."""
    counts = np.array(r.by_layer.get(role, ()))
    if not counts.sum():
        return f"No unit is {role}."
    cumulative = np.cumsum(counts) / counts.sum()
    low, high = (int(np.searchsorted(cumulative, q)) for q in (0.25, 0.75))
    return (
        f"The layer with most {role} is {int(counts.argmax())} ({counts.max()} of {counts.sum():,}); the middle "
        f"half of them lies in layers {low} to {high} of 0 to {counts.size - 1}."
    )


def ablate(r: AblateResult) -> tuple[str, ...]:
    """One paragraph per role."""
    base = r.baseline.harmful.refused
    out = [f"Undamaged, the model refuses {percents(base)} of harmful test prompts."]
    for role in dict.fromkeys(c.role for c in r.conditions):
        own = [c for c in r.conditions if c.role == role and c.control is None]
        if own:
            out.append(_role(r, role, own))
    return tuple(out)


def _role(r: AblateResult, role: str, own: Sequence[Ablation]) -> str:
    c = own[0]
    share = r.shares.get(role)
    size = f" ({percent(share.units)} of units, {percent(share.parameters)} of block parameters)" if share else ""
    said = f"Without the {role}{size}, by {c.mode} ablation, it refuses {percents(c.behaviour.harmful.refused)}."
    twins = r.controls(role, c.mode)
    if not twins:
        said += " No random set was measured, so this may be what any units of that number do."
    else:
        said += _against(r.beyond_random(role, c.mode), role, twins)
    noise = c.behaviour.harmful.incoherent
    if noise.value > NOISE:
        said += (
            f" But {percent(noise)} of its responses are incoherent: damage, as far as those go, not a changed choice."
        )
    return said + _utility(r, c, twins) + _modes(r, own)


def _against(lost: Estimate, role: str, twins: Sequence[Ablation]) -> str:
    at_random = count(len(twins), "matched random set")
    overlap = float(np.mean([t.overlap for t in twins]))
    if overlap > 0:
        at_random += f" (which cannot help sharing {percent(overlap)} of its units with {role})"
    if not _sign(lost):
        told = f"the difference is {point_interval(lost)}, which n = {lost.n} prompts do not tell from none"
        return f" Beside {at_random} {told}."
    size = point_interval(lost if lost.value > 0 else _negated(lost))
    return f" That is {size} {'fewer' if lost.value > 0 else 'more'} than with {at_random}."


def _negated(e: Estimate) -> Estimate:
    return Estimate(-e.value, None if e.high is None else -e.high, None if e.low is None else -e.low, e.n)


def _utility(r: AblateResult, c: Ablation, twins: Sequence[Ablation]) -> str:
    by = r.baseline.utility.answer_perplexity.value
    own = c.behaviour.utility.answer_perplexity.value / by
    said = f" The perplexity of harmless answers is {number(own)} times the undamaged model's"
    if twins:
        said += (
            f" ({number(float(np.mean([t.behaviour.utility.answer_perplexity.value for t in twins])) / by)} at random)"
        )
    return said + "."


def _modes(r: AblateResult, own: Sequence[Ablation]) -> str:
    """Where ways of ablating disagree by more than the prompts explain."""
    said = ""
    for other in own[1:]:
        gap = stats.paired_difference(np.array(own[0].refused, dtype=float), np.array(other.refused, dtype=float))
        if _sign(gap):
            said += (
                f" By {other.mode} ablation it refuses {percent(other.behaviour.harmful.refused)}: the two ways of "
                "ablating disagree, so the size of the effect depends on the way."
            )
    return said


def scored_roles(r: AblateResult) -> list[str]:
    """Roles whose refusal score can be set beside those of random sets."""
    own = {c.role for c in r.conditions if c.control is None and c.mode == "mean"}
    return [role for role, values in r.score_controls.items() if values and role in own]


def score_controls(r: AblateResult, role: str) -> str:
    """Alt text: the role's refusal score among those of random sets."""
    values, own = np.array(r.score_controls[role]), r.find(role).behaviour.refusal_score
    return (
        f"Histogram of the mean refusal score without each of {values.size} random sets, {number(values.min())} to "
        f"{number(values.max())}. Without the {role} it is {number(own.value)}, below "
        f"{int((values > own.value).sum())} of {values.size}; undamaged {number(r.baseline.refusal_score.value)}."
    )


def freeze(r: FreezeResult) -> tuple[str, ...]:
    """Did the attack work, did freezing help beyond a random set, and at what loss?"""
    arms = {n: [a for a in r.arms if a.name == n] for n in dict.fromkeys(a.name for a in r.arms)}
    refused = {n: np.mean([a.refused for a in found], axis=0) for n, found in arms.items()}
    seeds = max(map(len, arms.values()), default=0)
    out = [f"Before fine-tuning the model refuses {percents(r.before.harmful.refused)} of harmful test prompts."]
    if not arms:
        return tuple(out)
    if FULL in arms:
        lost = stats.paired_difference(np.array(r.before_refused, dtype=float), refused[FULL])
        told = {
            1: "benign fine-tuning does lower refusals",
            -1: "fine-tuning raised refusals, so there is nothing for freezing to prevent",
            0: "no loss that so many prompts can show, so there is little for freezing to prevent",
        }
        out.append(
            f"After {count(len(arms[FULL][0].training.losses), 'step')} on "
            f"{count(arms[FULL][0].training.examples, 'ordinary instruction')} with nothing frozen it refuses "
            f"{percent(refused[FULL].mean())}, a loss of {point_interval(lost)}: {told[_sign(lost)]}."
        )
    if FROZEN in arms and RANDOM in arms:
        kept = stats.paired_difference(refused[FROZEN], refused[RANDOM])
        than = {1: "more than", -1: "less than", 0: "not measurably different from"}[_sign(kept)]
        out.append(
            f"With SCU and top CU frozen ({percent(arms[FROZEN][0].training.frozen_share)} of block parameters) it "
            f"refuses {percent(refused[FROZEN].mean())}, with a random set of the same size frozen "
            f"{percent(refused[RANDOM].mean())}. The difference is {point_interval(kept)}: what freezing these units "
            f"keeps is {than} what a random freeze keeps."
        )
    out += _learned(arms)
    out.append(
        "One seed: nothing here says how much two runs of the same method differ."
        if seeds == 1
        else f"Means over {seeds} seeds; the intervals are over prompts, not over seeds."
    )
    if any(a.training.unchanged is False for a in r.arms):
        out.append("Warning: a frozen parameter changed in training, so the numbers of that arm do not count.")
    return tuple(out)


def _learned(arms: dict[str, list[Arm]]) -> list[str]:
    """Says so when a frozen arm learned less than the full one: that alone can keep refusals."""
    losses = {
        n: [a.training.validation_loss[1] for a in found if a.training.validation_loss] for n, found in arms.items()
    }
    mean = {n: float(np.mean(v)) for n, v in losses.items() if v}
    if FULL not in mean or FROZEN not in mean:
        return []
    told = f"Validation loss afterwards, in nats per token: {number(mean[FROZEN])} with SCU and top CU frozen, "
    told += f"{number(mean[FULL])} with nothing frozen"
    told += f", {number(mean[RANDOM])} with random units frozen" if RANDOM in mean else ""
    if mean[FROZEN] - mean[FULL] > LEARNED_LESS:
        told += ". The frozen model learned less of the task, which by itself can keep refusals"
    return [told + "."]


def _above(a: Estimate, b: Estimate) -> bool:
    """Whether a's interval lies above b's."""
    return a.low is not None and b.high is not None and a.low > b.high


def _sign(difference: Estimate) -> int:
    """1 or -1 where the interval leaves zero out, else 0."""
    if difference.low is None or difference.high is None:
        return 0
    return 1 if difference.low > 0 else -1 if difference.high < 0 else 0
