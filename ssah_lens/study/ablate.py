"""H4, second half: ablate each role on test prompts, beside random sets matched in layer and kind."""

from __future__ import annotations

from collections.abc import Iterable

from ssah_lens.chat.model import ChatModel
from ssah_lens.config import AblateConfig
from ssah_lens.intervene import MODES
from ssah_lens.intervene.hooks import ablated
from ssah_lens.intervene.moments import Moments
from ssah_lens.measure.refusal import refusal_scores
from ssah_lens.progress import progress
from ssah_lens.results import AblateResult, Ablation, RoleShare
from ssah_lens.study.behaviour import Yardstick, behave
from ssah_lens.units import Role, UnitSet

MAIN = Role.SCU
"""The role that the hypothesis is about: it gets all the controls, the other roles fewer."""

ALIKE = 0.5
"""A random set that shares more than this with a role (as any does that is as large as CU) is no control: not run."""


def ablate_sets(
    model: ChatModel,
    sets: dict[str, UnitSet],
    moments: Moments | None,
    y: Yardstick,
    config: AblateConfig,
    seed: int,
    modes: Iterable[str] = MODES,
) -> AblateResult:
    """Measures the undamaged model, then each set and its random twins.

    Args:
        model: the undamaged model.
        sets: name (a role) -> units.
        moments: means for mean ablation; not needed when only zero is asked for.
        y: the yardstick, made from the same model.
        config: how many controls.
        seed: seed of the first control; the others follow.
        modes: ways to ablate. Controls are made for the first one.
    """
    modes = list(modes)
    sets = {name: units for name, units in sets.items() if len(units)}
    baseline, baseline_refused = behave(model, y)
    plan = []
    for name, units in sets.items():
        plan += [(name, mode, None, units) for mode in modes]
        asked = len(sets) == 1 or name == MAIN
        twins = [units.random_twin(seed + i) for i in range(config.controls if asked else config.other_controls)]
        alike = not asked and any(len(t & units) > ALIKE * len(units) for t in twins)
        plan += [] if alike else [(name, modes[0], seed + i, t) for i, t in enumerate(twins)]
    conditions = []
    for name, mode, control, units in progress(plan, "ablating"):
        with ablated(model, units, mode, moments):
            # Multiple choice is the dearest part of the yardstick: for the default mode, and not for all controls.
            main = control is None or name == MAIN or len(sets) == 1
            behaviour, refused = behave(model, y, choices=main and mode == modes[0])
        overlap = 0.0 if control is None else len(units & sets[name]) / len(units)
        conditions.append(Ablation(name, mode, control, overlap, behaviour, refused))
    shares = {n: RoleShare(u.share.n, u.share.units, u.share.parameters) for n, u in sets.items()}
    return AblateResult(
        baseline,
        baseline_refused,
        tuple(conditions),
        _score_controls(model, sets, moments, y, config, seed, modes[0]),
        shares,
    )


def _score_controls(model, sets, moments, y, config, seed, mode) -> dict[str, list[float]]:
    """Mean refusal score under many matched random sets: one forward each, for the main role (or the only set)."""
    names = [n for n in sets if n == MAIN] or list(sets)
    out: dict[str, list[float]] = {}
    for name in names:
        out[name] = []
        for i in progress(range(config.score_controls), f"random twins of {name}"):
            with ablated(model, sets[name].random_twin(seed + i), mode, moments):
                out[name].append(float(refusal_scores(model, y.harmful, y.tokens).mean()))
    return out
