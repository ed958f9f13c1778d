"""H4, second half: ablate each role on test prompts, beside random sets matched in layer and kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np

from ssah_lens.chat.model import ChatModel
from ssah_lens.config import AblateConfig
from ssah_lens.intervene.hooks import ablated
from ssah_lens.intervene.moments import Moments
from ssah_lens.intervene.resample import Bank
from ssah_lens.measure.refusal import refusal_scores
from ssah_lens.progress import progress
from ssah_lens.results import AblateResult, Ablation, Behaviour, RoleShare
from ssah_lens.study.behaviour import Yardstick, behave
from ssah_lens.study.engine import Ahead, nothing_ahead
from ssah_lens.study.keep import Keep, anew
from ssah_lens.units import Role, UnitSet

MAIN = Role.SCU
"""The role that the hypothesis is about: it gets all the controls, the other roles fewer."""
ALIKE = 0.5
"""A random set that shares more than this with a role (as any does that is as large as CU) is no control: not run."""
MOST_PERPLEXITY = 1.0
"""The damage to harmless answers may not exceed the random control's (ratio of perplexities, by point estimate)."""
MOST_INCOHERENT = 0.1
"""Above this share of noise the lost refusals are not a choice that changed but a model that broke."""
Measured = tuple[Behaviour, tuple[bool, ...]]


@dataclass(frozen=True)
class Replacement:
    """What takes the place of an ablated unit.

    Attributes:
        moments: for 'mean'.
        bank: for 'resample'.
    """

    moments: Moments | None = None
    bank: Bank | None = None


@dataclass(frozen=True)
class Cut:
    """One set to ablate.

    Attributes:
        units: None for the undamaged model.
        mode: what replaces them.
        choices: whether multiple choice is asked.
    """

    units: UnitSet | None
    mode: str = "mean"
    choices: bool = True


Shared = tuple[Yardstick, Replacement]


def measured(model: ChatModel, shared: Shared, cut: Cut) -> Measured:
    """Task: asks the whole yardstick."""
    y, put = shared
    if cut.units is None:
        return behave(model, y)
    with ablated(model, cut.units, cut.mode, put.moments, put.bank):
        return behave(model, y, choices=cut.choices)


def scored(model: ChatModel, shared: Shared, cut: Cut) -> float:
    """Task: the mean refusal score, one forward pass."""
    y, put = shared
    without = nullcontext() if cut.units is None else ablated(model, cut.units, cut.mode, put.moments, put.bank)
    with without:
        return float(refusal_scores(model, y.harmful, y.tokens).mean())


@dataclass(frozen=True)
class Bench:
    """What every ablation is measured with.

    Attributes:
        model: the undamaged model.
        y: the yardstick, made from the same model.
        put: what replaces units.
        seed: of the first random twin; the others follow.
        keep: where finished measurements are kept.
        ahead: is told which ones will be wanted.
    """

    model: ChatModel
    y: Yardstick
    put: Replacement
    seed: int
    keep: Keep = anew
    ahead: Ahead = nothing_ahead

    def behave(self, name: str, units: UnitSet | None, mode: str = "mean", choices: bool = True) -> Measured:
        """Asks the whole yardstick without these units; None for the undamaged model."""
        cut = Cut(units, mode, choices)
        return self.keep(name, Measured, lambda: measured(self.model, (self.y, self.put), cut))

    def behave_ahead(self, cuts: dict[str, Cut]) -> None:
        """Says what `behave` will be asked."""
        self.ahead(measured, (self.y, self.put), cuts, Measured)

    def twin_scores(self, name: str, units: UnitSet, mode: str, n: int) -> list[float]:
        """Mean refusal score without each of n random twins: one forward pass each."""
        shared = self.y, self.put
        cuts = {f"{name}-score-{i}": Cut(units.random_twin(self.seed + i), mode) for i in range(n)}
        self.ahead(scored, shared, cuts, float)
        return [
            self.keep(part, float, partial(scored, self.model, shared, cut))
            for part, cut in progress(cuts.items(), f"random twins of {name}")
        ]


def ablate_sets(
    model: ChatModel,
    sets: dict[str, UnitSet],
    moments: Moments | None,
    y: Yardstick,
    config: AblateConfig,
    seed: int,
    modes: Iterable[str] | None = None,
    bank: Bank | None = None,
    keep: Keep = anew,
    ahead: Ahead = nothing_ahead,
) -> AblateResult:
    """Measures the undamaged model, then each set and its random twins.

    Args:
        model: the undamaged model.
        sets: name (a role) -> units.
        moments: means for mean ablation; not needed when only zero is asked for.
        y: the yardstick, made from the same model.
        config: how many controls, which modes.
        seed: seed of the first control; the others follow.
        modes: ways to ablate, instead of the configured ones. Controls are made for the first one.
        bank: activations for resample ablation.
        keep: where finished measurements are kept.
        ahead: is told which ones will be wanted.
    """
    bench = Bench(model, y, Replacement(moments, bank), seed, keep, ahead)
    modes = list(modes or config.modes)
    sets = {name: units for name, units in sets.items() if len(units)}
    baseline, baseline_refused = bench.behave("baseline", None)
    plan: list[tuple[str, str, int | None, UnitSet]] = []
    for name, units in sets.items():
        plan += [(name, mode, None, units) for mode in modes]
        asked = len(sets) == 1 or name == MAIN
        twins = [units.random_twin(seed + i) for i in range(config.controls if asked else config.other_controls)]
        alike = not asked and any(len(t & units) > ALIKE * len(units) for t in twins)
        plan += [] if alike else [(name, modes[0], seed + i, t) for i, t in enumerate(twins)]
    # Multiple choice is the dearest part of the yardstick: for the default mode, and not for all controls.
    main = lambda name, control: control is None or name == MAIN or len(sets) == 1
    part = lambda name, mode, control: f"{name}-{mode}" + ("" if control is None else f"-twin-{control}")
    cuts = {part(n, m, c): Cut(units, m, main(n, c) and m == modes[0]) for n, m, c, units in plan}
    bench.behave_ahead(cuts)
    conditions = []
    for name, mode, control, units in progress(plan, "ablating"):
        cut = cuts[part(name, mode, control)]
        behaviour, refused = bench.behave(part(name, mode, control), units, mode, cut.choices)
        overlap = 0.0 if control is None else len(units & sets[name]) / len(units)
        conditions.append(Ablation(name, mode, control, overlap, behaviour, refused))
    scored = [n for n in sets if n == MAIN] or list(sets)
    return AblateResult(
        baseline,
        baseline_refused,
        tuple(conditions),
        {n: bench.twin_scores(n, sets[n], modes[0], config.score_controls) for n in scored},
        {n: role_share(u) for n, u in sets.items()},
    )


def damage(cut: Behaviour, controls: Sequence[Behaviour]) -> str:
    """Why a loss of refusals may be mere damage; '' when it is not.

    Args:
        cut: without the units.
        controls: without each of their random twins.
    """
    if cut.harmful.incoherent.value > MOST_INCOHERENT:
        return "More than a tenth of the responses are noise, so this is damage rather than a changed choice."
    at_random = np.mean([c.utility.answer_perplexity.value for c in controls])
    own = cut.utility.answer_perplexity.value
    if own / at_random > MOST_PERPLEXITY:
        return f"But harmless answers suffer more than at random (perplexity {own:.2f} against {at_random:.2f})."
    return ""


def role_share(units: UnitSet) -> RoleShare:
    """Size of a set by count and by parameters."""
    return RoleShare(units.share.n, units.share.units, units.share.parameters)
