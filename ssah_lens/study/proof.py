"""The rest of the proof: rising doses of the SCU ranking, and the SCU on several sets of harmful prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from ssah_lens import stats
from ssah_lens.chat.prompts import PromptSet
from ssah_lens.intervene.hooks import ablated
from ssah_lens.measure.refusal import ask
from ssah_lens.progress import progress
from ssah_lens.results import AblateResult, DosePoint, HarmfulGroup, HarmfulSet, Outcomes
from ssah_lens.score.base import PerUnit
from ssah_lens.study.ablate import MAIN, Bench, Cut, role_share
from ssah_lens.study.behaviour import outcomes
from ssah_lens.units import UnitSet, top_units

GENERATED = 3
"""Random twins of every dose that are generated with."""
SCORED = 10
"""Random twins of every dose whose refusal score is measured."""
SMALLEST_GROUP = 8
"""Prompts under which a rate of a group says too little to be shown."""


def dose_response(bench: Bench, ranking: PerUnit, shares: Sequence[float]) -> tuple[DosePoint, ...]:
    """Mean-ablates the highest-ranked share of units, for each share, beside random twins of the same size.

    Args:
        bench: as for the roles.
        ranking: `score.roles.ranking` of the SCU.
        shares: of each kind's units, rising.
    """
    out = []
    for share in progress(shares, "dose-response"):
        units = top_units(bench.model.grid, ranking, share)
        name = f"dose-{share:g}"
        twins = [units.random_twin(bench.seed + i) for i in range(GENERATED)]
        twin_cuts = {f"{name}-twin-{i}": Cut(t, choices=False) for i, t in enumerate(twins)}
        bench.behave_ahead({name: Cut(units)} | twin_cuts)
        behaviour, refused = bench.behave(name, units)
        out.append(
            DosePoint(
                share,
                role_share(units),
                behaviour,
                refused,
                tuple(bench.behave(f"{name}-twin-{i}", t, choices=False)[0] for i, t in enumerate(twins)),
                tuple(bench.twin_scores(name, units, "mean", SCORED)),
            )
        )
    return tuple(out)


def by_group(found: AblateResult, prompts: PromptSet) -> tuple[HarmfulGroup, ...]:
    """The harmful test prompts by phrasing and by category: does the SCU carry refusal of all kinds of request?

    Args:
        found: the role ablation on these prompts.
        prompts: the yardstick's harmful prompts, in their order.
    """
    scu, twins = found.find(MAIN), found.controls(MAIN)
    conditions = [np.array(c) for c in (found.baseline_refused, scu.refused, twins[0].refused)]
    out = []
    for by in ("phrasing", "category"):
        labels = np.array([getattr(p, by) for p in prompts])
        for name in sorted(set(labels) - {""}):
            mine = labels == name
            if mine.sum() >= SMALLEST_GROUP:
                out.append(HarmfulGroup(by, str(name), *(stats.rate(c[mine]) for c in conditions)))
    return tuple(out)


def on_sets(bench: Bench, scu: UnitSet, sets: Sequence[PromptSet]) -> tuple[HarmfulSet, ...]:
    """Other harmful sets: the undamaged model, without the SCU, without its first random twin."""
    conditions = {"baseline": UnitSet.empty(scu.grid), MAIN: scu, "twin": scu.random_twin(bench.seed)}

    def asked(units: UnitSet, prompts: PromptSet) -> Outcomes:
        with ablated(bench.model, units, "mean", bench.put.moments):
            return outcomes(ask(bench.model, [prompts], bench.y.judge, bench.y.max_new_tokens)[0])

    return tuple(
        HarmfulSet(
            prompts.name,
            *(
                bench.keep(f"set-{i}-{name}", Outcomes, partial(asked, units, prompts))
                for name, units in conditions.items()
            ),
        )
        for i, prompts in enumerate(progress(sets, "other harmful sets"))
    )
