"""Scores to roles: rankings and the cut. No model here; sizes are chosen on validation data elsewhere.

RU: smallest I_S + I_U (magnitudes for signed scores; a score's own `importance` where it has one). SCU: largest
I_S - I_U. UCU: smallest I_S - I_U. CU: the rest.
Where groups overlap the precedence is RU, SCU, UCU, CU (METHOD.md section 4; the paper gives none).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ssah_lens.errors import BadInput
from ssah_lens.score.base import PerUnit, Scores
from ssah_lens.units import Kind, Role, UnitGrid, UnitSet, UnitTable, top_units

CUT = (Role.RU, Role.SCU, Role.UCU)
"""Roles that have a ranking, in the order of precedence; CU is the rest."""


@dataclass(frozen=True)
class Sizes:
    """Share of each kind's units that a role is cut at, before precedence."""

    ru: float
    scu: float
    ucu: float

    def __post_init__(self) -> None:
        for name, share in (("RU", self.ru), ("SCU", self.scu), ("UCU", self.ucu)):
            if not 0 <= share <= 1:
                raise BadInput(f"the share of {name} is {share}; allowed is 0 to 1")


def ranking(scores: Scores, role: Role) -> PerUnit:
    """Values whose largest members are the role's: I_S - I_U for SCU, its negative for UCU, redundancy for RU.

    I_S and I_U are put on one scale first (each divided by its standard deviation over the kind), since a difference
    of numbers on two scales would follow the larger one. Units outside `scores.layers`, and units that were not
    measured (NaN), rank as -inf: never chosen.
    """
    safety, utility = _scaled(scores.safety), _scaled(scores.utility)
    if role is Role.SCU:
        values = {k: safety[k] - utility[k] for k in Kind}
    elif role is Role.UCU:
        values = {k: utility[k] - safety[k] for k in Kind}
    elif role is Role.RU and scores.importance is not None:
        values = {k: -scores.importance[k] for k in Kind}
    elif role is Role.RU:
        size = np.abs if scores.signed else (lambda v: v)
        values = {k: -(size(safety[k]) + size(utility[k])) for k in Kind}
    else:
        raise BadInput("CU has no ranking: it is what the other roles leave")
    values = {k: np.where(np.isnan(v), -np.inf, v) for k, v in values.items()}
    if scores.layers is None:
        return values
    eligible = np.isin(np.arange(len(values[Kind.MLP])), scores.layers)[:, None]
    return {k: np.where(eligible, v, -np.inf) for k, v in values.items()}


def scores_of(table: UnitTable) -> Scores:
    """The scores behind a units file: which layers were ranked, and whether redundancy was read from magnitudes.

    An older file does not say the latter, but its own roles do.
    """
    layers = table.provenance.get("layers")
    scores = Scores(table.safety, table.utility, True, range(*layers) if layers else None, table.importance)
    said = table.provenance.get("signed")
    if said is None:
        again = cut_like(scores, table.roles)
        said = all(again[role] == table.roles[role] for role in Role)
    return replace(scores, signed=bool(said))


def rescored(table: UnitTable, scores: Scores) -> UnitTable:
    """The table with other scores of the same units; its roles stay, their confidence goes."""
    found = (scores.safety, scores.utility)
    return UnitTable(table.grid, *found, table.roles, table.provenance, importance=scores.importance)


def cut_like(scores: Scores, sizes: Mapping[Role, UnitSet]) -> dict[Role, UnitSet]:
    """Roles with as many units of each kind as those of `sizes` have; of the scores that those were cut from, these."""
    grid = sizes[Role.CU].grid
    free = UnitSet(grid, {k: np.ones((grid.n_layers, grid.width(k)), dtype=bool) for k in Kind})
    roles = {}
    for role in CUT:
        rank = ranking(scores, role)
        masks = {}
        for kind in Kind:
            values = np.where(free.masks[kind], rank[kind], -np.inf).ravel()
            order = np.argsort(-values, kind="stable")[: int(sizes[role].masks[kind].sum())]
            mask = np.zeros(values.size, dtype=bool)
            mask[order] = True
            masks[kind] = mask.reshape(rank[kind].shape)
        roles[role] = UnitSet(grid, masks)
        free = free - roles[role]
    return roles | {Role.CU: free}


def assign(grid: UnitGrid, scores: Scores, sizes: Sizes) -> dict[Role, UnitSet]:
    """Disjoint roles that cover every unit, by precedence RU, SCU, UCU, CU."""
    taken = UnitSet.empty(grid)
    roles = {}
    for role, share in ((Role.RU, sizes.ru), (Role.SCU, sizes.scu), (Role.UCU, sizes.ucu)):
        roles[role] = top_units(grid, ranking(scores, role), share) - taken
        taken = taken | roles[role]
    everything = UnitSet(grid, {k: np.ones_like(m) for k, m in taken.masks.items()})
    roles[Role.CU] = everything - taken
    return roles


def top_complex(grid: UnitGrid, scores: Scores, roles: Mapping[Role, UnitSet], share: float) -> UnitSet:
    """The CU with the largest I_S - I_U, as many as `share` of all units (the paper's 'top 6% CU', appendix A.2)."""
    rank = ranking(scores, Role.SCU)
    complex_only = {k: np.where(roles[Role.CU].masks[k], rank[k], -np.inf) for k in Kind}
    return top_units(grid, complex_only, share)


def _scaled(values: PerUnit) -> PerUnit:
    out = {}
    for kind, v in values.items():
        known = ~np.isnan(v)
        spread = float(v[known].std()) if known.any() else 0.0
        out[kind] = np.where(known, v / spread if spread > 0 else 0.0, np.nan)
    return out
