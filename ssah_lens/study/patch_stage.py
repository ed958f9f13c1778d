"""Stage `patch`: where the choice to refuse is carried from the words of a prompt to the decision position.

Exact maps over token-aligned pairs at every site, and how far cheaper numbers can be trusted: attribution patching
beside the exact effect of cells and of units, the effect at the decision position beside the effect at all positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.promptset import Prompt, PromptSet
from ssah_lens.config import PatchConfig
from ssah_lens.intervene.attribution_patching import attribution_patching
from ssah_lens.intervene.metric import Metric, metric_of
from ssah_lens.intervene.moments import collect
from ssah_lens.intervene.patching import activation_patching
from ssah_lens.intervene.sites import Site
from ssah_lens.intervene.sweep import Fill
from ssah_lens.results import EffectAgreement, PatchMap, PatchResult
from ssah_lens.study.effects import cell_agreement, position_agreement, unit_agreement
from ssah_lens.study.openings import Openings
from ssah_lens.study.parts import Parts
from ssah_lens.study.patch import patch_map

NOWHERE = Parts()
"""Keeps nothing."""
SITES = (Site.RESID, Site.ATTN, Site.MLP, Site.HEAD)


def patch_stage(
    model: ChatModel,
    harmful: PromptSet,
    twins: PromptSet,
    openings: Openings,
    config: PatchConfig,
    seed: int = 0,
    note: Callable[[str], None] = lambda text: None,
    keep: Parts = NOWHERE,
) -> PatchResult:
    """Patches matched pairs at every site, and compares approximations with the exact effect.

    Args:
        model: the aligned model.
        harmful, twins: row i of one is the harmless twin of row i of the other.
        openings: what the metric compares.
        config: how much.
        seed: of samples and intervals.
        note: told when the maps are left out because no pair is token-aligned.
        keep: where finished maps and comparisons are kept, and the finished cells of the map under way.
    """
    choose = lambda: matched(model, harmful, twins, openings.metric, config.pairs)
    sides = keep("pairs", tuple[list[Prompt], list[Prompt]] | None, choose)
    maps, cells = [], []
    if sides is not None:
        paired = model.rows(sides[0]), model.rows(sides[1])

        def both(site: Site) -> tuple[PatchMap, EffectAgreement]:
            under_way = keep.working(f"map-{site}")
            store = None if under_way is None else under_way / "cells.npy"
            exact = activation_patching(model, *sides, openings.metric, site, store=store)
            guess = attribution_patching(model, *sides, openings.metric, site)
            return patch_map(model, exact, openings, paired, seed), cell_agreement(exact, guess, exact.estimand)

        for site in SITES:
            drawn, compared = keep(f"map-{site}", tuple[PatchMap, EffectAgreement], partial(both, site))
            maps.append(drawn)
            cells.append(compared)
    else:
        note(f"note: fewer than two pairs have as many tokens on both sides for {model.name}: no patching maps")
    asked = harmful.sample(config.prompts, seed)
    of_units = lambda steps: unit_agreement(model, asked, openings.metric, config.units, steps, seed=seed)
    units = tuple(keep(f"units-{m}", EffectAgreement, partial(of_units, m)) for m in (0, config.steps))

    def at_positions() -> EffectAgreement:
        rows = model.rows(asked)
        fill = Fill("mean", collect(model, rows))
        return position_agreement(model, rows, openings.metric, fill, config.units, seed)

    positions = keep("positions", EffectAgreement, at_positions)
    return PatchResult(tuple(maps), tuple(cells), units, positions)


def matched(
    model: ChatModel, harmful: PromptSet, twins: PromptSet, metric: Metric, n: int
) -> tuple[list[Prompt], list[Prompt]] | None:
    """The token-aligned pairs whose two sides differ most in the metric; None when there are fewer than two.

    Chosen on the unpatched runs: pairs without a difference have none to explain.
    """
    rows = model.rows(harmful), model.rows(twins)
    aligned = [i for i, (a, b) in enumerate(zip(*rows, strict=True)) if len(a.ids) == len(b.ids) and a.ids != b.ids]
    if len(aligned) < 2:
        return None
    clean, corrupted = (metric_of(model, [side[i] for i in aligned], metric) for side in rows)
    best = np.sort(np.argsort(corrupted - clean, kind="stable")[:n])
    chosen = [aligned[i] for i in best]
    return [harmful[i] for i in chosen], [twins[i] for i in chosen]
