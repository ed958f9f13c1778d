"""Would other calibration data have given the same roles? The score again on bootstrap samples, halves, another seed.

Every rerun is cut at the sizes of the roles it is compared with, so that a change is a change of rank and not of size
(METHOD.md section 7). A unit's confidence is the share of bootstrap reruns in which it keeps its role. Calibration
prompts are drawn with replacement on both sides, the means are taken again from the drawn prompts, and a score that
learns learns again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ssah_lens.chat.model import ChatModel
from ssah_lens.intervene.moments import collect
from ssah_lens.progress import progress
from ssah_lens.results import RoleMoves, StabilityResult
from ssah_lens.score import score
from ssah_lens.score.base import Calibration
from ssah_lens.score.roles import rescored
from ssah_lens.study.transfer import moves, recut
from ssah_lens.units import Kind, Role, UnitTable

SURE = 0.8
"""A unit that keeps its role in this share of bootstrap reruns is called sure of it."""


def stability(
    model: ChatModel, data: Calibration, table: UnitTable, reruns: int, folder: Path, also: Calibration | None = None
) -> tuple[UnitTable, StabilityResult]:
    """Scores again and compares; the table comes back with each unit's confidence.

    Args:
        model: the model.
        data: the calibration that the table was made from.
        table: scores and roles.
        reruns: bootstrap samples.
        folder: keeps each rerun's units file, and what a killed one has learnt.
        also: another calibration sample, to compare with as well.
    """
    name = str(table.provenance["score"])
    folder.mkdir(parents=True, exist_ok=True)

    def again(what: str, make: Callable[[], Calibration]) -> UnitTable:
        file = folder / f"{what.replace(' ', '-')}.parquet"
        if not file.is_file():
            calibration = make()
            calibration = replace(calibration, measured=replace(calibration.measured, store=folder))
            fresh = rescored(table, score(name)(model, calibration))
            roles = recut(fresh, table)
            replace(fresh, roles=roles, provenance={**table.provenance, "sample": what}).save(file)
        return UnitTable.load(file, model.grid)

    plan: dict[str, Callable[[], Calibration]] = {
        f"bootstrap {i}": partial(bootstrap, model, data, data.seed + 1 + i) for i in range(reruns)
    }
    plan |= {"first half": lambda: half(model, data, 0), "other half": lambda: half(model, data, 1)}
    plan["other seed"] = lambda: replace(data, seed=data.seed + 1000)
    if also is not None:
        plan["other prompts"] = lambda: also
    found = {what: again(what, make) for what, make in progress(plan.items(), "scoring again")}
    confidence = kept_role(table, [found[f"bootstrap {i}"] for i in range(reruns)])
    compared: dict[str, RoleMoves] = {w: moves(table.grid, table.roles, t.roles) for w, t in found.items()}
    compared["half against half"] = moves(table.grid, found["first half"].roles, found["other half"].roles)
    mean = {
        str(r): float(np.concatenate([confidence[k][u.masks[k]] for k in Kind]).mean())
        for r, u in table.roles.items()
        if len(u)
    }
    sure = {
        str(r): float(np.concatenate([confidence[k][u.masks[k]] >= SURE for k in Kind]).mean())
        for r, u in table.roles.items()
        if len(u)
    }
    return replace(table, confidence=confidence), StabilityResult(name, reruns, mean, SURE, sure, compared)


def kept_role(table: UnitTable, reruns: list[UnitTable]) -> dict[Kind, np.ndarray]:
    """Share of the reruns in which each unit has the role that it has in the table."""
    out = {}
    for kind in Kind:
        same = np.zeros(table.safety[kind].shape)
        for other in reruns:
            for role in Role:
                same += table.roles[role].masks[kind] & other.roles[role].masks[kind]
        out[kind] = same / max(len(reruns), 1)
    return out


def bootstrap(model: ChatModel, data: Calibration, seed: int) -> Calibration:
    """As many prompts of each side, drawn with replacement."""
    rng = np.random.default_rng(seed)
    draw = lambda rows: rng.integers(len(rows), size=len(rows))
    return _of_rows(model, data, draw(data.safety), draw(data.utility))


def half(model: ChatModel, data: Calibration, which: int) -> Calibration:
    """One of two disjoint random halves of each side."""
    rng = np.random.default_rng(data.seed)
    part = lambda rows: np.sort(np.array_split(rng.permutation(len(rows)), 2)[which])
    return _of_rows(model, data, part(data.safety), part(data.utility))


def _of_rows(model: ChatModel, data: Calibration, safety: np.ndarray, utility: np.ndarray) -> Calibration:
    pick = lambda rows, chosen: [rows[i] for i in chosen]
    refused, answered = pick(data.safety, safety), pick(data.utility, utility)
    return replace(
        data,
        safety=refused,
        utility=answered,
        fulfilling=pick(data.fulfilling, safety),
        safety_moments=collect(model, refused, "moments, harmful"),
        utility_moments=collect(model, answered, "moments, harmless"),
    )
