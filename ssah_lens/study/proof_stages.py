"""The stages that prove H4, as the runner calls them: which score, how stable, what its units do, whether they suffice.

Each takes the study (its models, prompts, calibration and folder) and returns the stage's result. Finished parts are
kept in the run folder, so that a killed run loses at most one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ssah_lens.chat.prompts import prompt_set
from ssah_lens.intervene.resample import Bank
from ssah_lens.results import (
    AblateResult,
    ContextsResult,
    ScoreComparison,
    StabilityResult,
    SufficiencyResult,
    Transplant,
)
from ssah_lens.score.base import Measured, PerUnit
from ssah_lens.score.roles import ranking, scores_of
from ssah_lens.study.ablate import Bench, Replacement, ablate_sets
from ssah_lens.study.behaviour import yardstick
from ssah_lens.study.compare_scores import compare_scores
from ssah_lens.study.contexts import unit_contexts
from ssah_lens.study.explored import explored, save_contexts
from ssah_lens.study.openings import find_openings
from ssah_lens.study.proof import by_group, dose_response, on_sets
from ssah_lens.study.stability import stability as score_again
from ssah_lens.study.sufficiency import faithfulness, random_ranking, sets_to_move, transplant
from ssah_lens.study.units import answered_by, validation_prompts
from ssah_lens.units import Kind, Role, UnitSet

if TYPE_CHECKING:
    from ssah_lens.study.runner import Study

VALIDATION_TOKENS = 12
"""Length of a response where scores are compared: long enough for the judge to know a refusal."""
RANDOM_RANKINGS = 2
SHOWN = {Kind.MLP: 24, Kind.HEAD: 6}
"""Units of each kind that get contexts."""


def scores(study: Study) -> ScoreComparison:
    """Every score beside the exact effect and beside the others, on validation prompts."""
    config, n, seed = study.config.scores, study.config.units.validation, study.config.seed
    asked, mix, spare = validation_prompts(n, seed)
    answered, _ = answered_by(study.aligned, mix, spare)
    tokens = study.folder.load_stage("refusal").refusal_token_ids
    y = yardstick(study.aligned, asked, answered, tokens, max_new_tokens=VALIDATION_TOKENS, choices=0)
    data = replace(study.calibration, unaligned=study.unaligned, refusal_tokens=tokens)
    # A folder of its own: a gate that the stage `units` has learnt would be read back, and seem to cost nothing.
    sample = Measured(config.exact_units, config.exact_prompts, store=study.score_parts / "compared")
    return compare_scores(study.aligned, data, y, sample=sample, keep=study.folder.parts("scores"))


def stability(study: Study) -> StabilityResult:
    """The score on other calibration data; `units.parquet` gets each unit's confidence."""
    reruns, folder = study.config.stability.reruns, study.folder.path / "stability"
    table, data = study.table(), study.calibration
    if table.provenance["score"] == "contrast":
        data = replace(data, unaligned=study.unaligned)
    table, result = score_again(study.aligned, data, table, reruns, folder)
    table.save(study.folder.path / "units.parquet")
    return result


def contexts(study: Study) -> ContextsResult:
    """What the SCU that rank highest respond to and write; the explorer gets that of all units that matter."""
    table, n, seed = study.table(), study.config.units.validation, study.config.seed
    harmful, harmless, _ = validation_prompts(n, seed)
    sets = {"harmful": harmful, "harmless": harmless}
    tokens = study.folder.load_stage("refusal").refusal_token_ids
    save_contexts(study.folder.path, explored(study.aligned, table, sets, tokens, study.calibration.utility))
    openings = find_openings(study.aligned, seed)
    top = strongest(table.roles[Role.SCU], ranking(scores_of(table), Role.SCU))
    return ContextsResult(tuple(unit_contexts(study.aligned, top, openings=openings)) if top else ())


def strongest(units: UnitSet, rank: PerUnit, n: Mapping[Kind, int] = SHOWN) -> list[tuple[Kind, int, int]]:
    """The highest-ranked units of a set, as many of each kind as `n` says, highest first within their kind."""
    out = []
    for kind in Kind:
        values = np.where(units.masks[kind], rank[kind], -np.inf)
        order = np.argsort(-values, axis=None, kind="stable")[: min(n[kind], int(units.masks[kind].sum()))]
        out += [(kind, int(layer), int(i)) for layer, i in zip(*np.unravel_index(order, values.shape), strict=True)]
    return out


def ablate(study: Study) -> AblateResult:
    """Every role ablated on the test split, beside its random twins; in the longer profiles the whole grid."""
    config, seed, data, table = study.config.ablate, study.config.seed, study.calibration, study.table()
    more = [prompt_set(name) for name in config.harmful]
    bank = None
    if "resample" in config.modes:
        bank = Bank.collect(study.aligned, [*data.safety, *data.utility], seed)
    keep = study.folder.parts("ablate")
    y, scu = study.yardstick, table.roles[Role.SCU]
    sets = {str(r): s for r, s in table.roles.items()}
    ahead = study.ahead("ablate")
    found = ablate_sets(study.aligned, sets, data.moments, y, config, seed, bank=bank, keep=keep, ahead=ahead)
    if not len(scu):
        return found
    bench = Bench(study.aligned, y, Replacement(data.moments), seed, keep, ahead)
    return replace(
        found,
        doses=dose_response(bench, ranking(scores_of(table), Role.SCU), config.doses),
        groups=by_group(found, y.harmful),
        sets=on_sets(bench, scu, more),
    )


def sufficiency(study: Study) -> SufficiencyResult:
    """The SCU's activations put into the unaligned model; the units that rank highest kept alone."""
    y, seed, table = study.yardstick, study.config.seed, study.table()
    keep = study.folder.parts("sufficiency")
    moved: tuple[Transplant, ...] = ()
    if study.unaligned is not None and study.unaligned.grid == study.aligned.grid:
        sets = sets_to_move(table.roles[Role.SCU], seed)
        asked = study.unaligned, study.aligned, sets, y.harmful, y.ordinary
        moved = transplant(*asked, y.tokens, y.max_new_tokens, y.judge, keep)
    found = scores_of(table)
    rankings = {"SCU (I_S - I_U)": ranking(found, Role.SCU), "I_S": found.safety}
    rankings |= {f"random {i}": random_ranking(study.aligned, seed + i) for i in range(RANDOM_RANKINGS)}
    moments = study.calibration.moments
    curves = faithfulness(study.aligned, rankings, moments, y.harmful, y.ordinary, y.tokens, keep=keep)
    return SufficiencyResult(moved, curves)
