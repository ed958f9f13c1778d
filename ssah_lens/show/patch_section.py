"""Stage `patch` in the report: its figures, words and tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from ssah_lens.results import EffectAgreement, PatchMap, PatchResult
from ssah_lens.show.effect_figures import agreement_scatter
from ssah_lens.show.patching_figures import SITES, array, heatmap
from ssah_lens.show.section import Section, Table
from ssah_lens.show.text import clean, count, interval, number, percent
from ssah_lens.show.tokens import drawable

STRONGEST = 4
"""Cells of each map that the table lists."""
HALF = 0.5
"""Share of the difference from which on a position is said to carry the choice."""


def draw_patch(r: PatchResult) -> dict[str, Figure]:
    """Maps, and the scatters of units."""
    out = {f"patch_{m.site}": heatmap(m) for m in r.maps}
    out |= {name: agreement_scatter(a) for name, a in _scatters(r).items()}
    return out


def patch_section(r: PatchResult) -> Section:
    """Where the choice is carried, and how far cheap numbers can be trusted."""
    return Section(
        "patch",
        "Where the choice is carried",
        "Which activation, moved from a harmful prompt into its harmless twin, brings the refusal with it?",
        {f"patch_{m.site}": _map_alt(m) for m in r.maps} | {n: _scatter_alt(a) for n, a in _scatters(r).items()},
        tuple(_words(r)),
        "0 is the harmless twin left alone, 1 the harmful prompt itself. Positions before the first word that differs "
        "cannot change anything, and are not run. Approximations stand beside the exact effect of the same cells and "
        "units. Pairs were chosen for having as many tokens on both sides and the largest difference of the metric.",
        tuple(t for t in (_strongest_table(r.maps), _agreement_table(r)) if t.rows),
    )


def _scatters(r: PatchResult) -> dict[str, EffectAgreement]:
    named = {f"agreement_{i}": a for i, a in enumerate(r.units)}
    return named | {"agreement_positions": r.positions}


def _words(r: PatchResult) -> Iterator[str]:
    if r.maps:
        m = r.maps[0]
        yield (
            f"In {count(m.n, 'pair')} of a harmful prompt and its harmless twin, an activation of the harmful run took "
            f"the place of the same one in the harmless run ({m.estimand}). The metric ({m.metric}) is "
            f"{interval(m.clean)} on the harmful prompts and {interval(m.corrupted)} on the twins."
        )
    for m in r.maps:
        if m.site == "resid" and m.axes == ("layer", "pos"):
            yield _handover(m)
        if m.site == "head":
            yield _heads(m)
    if r.cells:
        told = "; ".join(f"{a.name.split(', ')[-1]}: {_rank(a)}" for a in r.cells)
        yield (
            "Attribution patching guesses a whole map from two forward passes and one backward. Its rank correlation "
            f"with the exact effect of the cells that can change: {told}."
        )
    for a in r.units:
        k = max(a.overlap)
        missed = f" Most of what it misses: {', '.join(a.missed[:3])}." if a.missed else ""
        yield (
            f"{a.name[0].upper()}{a.name[1:]}, beside the exact effect of {count(len(a.exact), 'random unit')}: "
            f"{_rank(a)}; it finds {percent(a.overlap[k])} of the top {percent(k)}.{missed}"
        )
    p = r.positions
    yield (
        f"Ablating a unit at the decision position and ablating it everywhere are two estimands: over "
        f"{count(len(p.exact), 'random unit')} and {count(p.n, 'prompt')}, {_rank(p)}, the same sign for "
        f"{percent(_same_sign(p))} of units."
    )


def _rank(a: EffectAgreement) -> str:
    return "no rank correlation (one side is constant)" if a.spearman is None else f"Spearman {number(a.spearman)}"


def _same_sign(a: EffectAgreement) -> float:
    return float(np.mean(np.sign(a.exact) == np.sign(a.guess)))


def _handover(m: PatchMap) -> str:
    """From which layer on the decision position carries more than half of the difference."""
    effect = array(m.values)
    at_end = np.flatnonzero(effect[:, -1] >= HALF)
    if not at_end.size:
        return "At no layer does the residual stream at the decision position alone carry half of the difference."
    layer = int(at_end[0])
    before = effect[:layer, :-1] if layer else effect[:1, :-1]
    i = tuple(map(int, np.unravel_index(int(np.nanargmax(before)), before.shape)))
    return (
        f"From the input of layer {m.labels['layer'][layer]} on, the residual stream at the decision position alone "
        f"carries more than half of the difference ({number(float(effect[layer, -1]))}). Before it, the single "
        f"position that carries most is {_place(m, 'pos', i[1])} ({number(float(before[i]))}, layer "
        f"{m.labels['layer'][i[0]]})."
    )


def _heads(m: PatchMap) -> str:
    effect = array(m.values)
    order = np.argsort(-np.abs(effect), axis=None, kind="stable")[:3]
    told = ", ".join(
        f"{m.labels['layer'][a]}.{m.labels['unit'][b]} ({number(float(effect[a, b]))})"
        for a, b in (np.unravel_index(i, effect.shape) for i in order)
    )
    return f"The heads (layer.head) that move it most, all positions of one head at once, are {told}, of {effect.size}."


def _strongest_table(maps: tuple[PatchMap, ...]) -> Table:
    rows = []
    for m in maps:
        values = array(m.values)
        low, high = (None if v is None else array(v) for v in (m.low, m.high))
        size = np.where(np.isnan(values), 0, np.abs(values))
        for i in np.argsort(-size, axis=None, kind="stable")[:STRONGEST]:
            at = tuple(map(int, np.unravel_index(i, values.shape)))
            ends = "" if low is None or high is None else f" [{number(float(low[at]))}, {number(float(high[at]))}]"
            rows.append((f"{SITES.get(m.site, m.site)}: {_where(m, at)}", f"{number(float(values[at]))}{ends} n={m.n}"))
    return Table("Strongest cells of each map (0 harmless twin, 1 harmful prompt)", ("cell", "effect"), tuple(rows))


def _agreement_table(r: PatchResult) -> Table:
    rows = tuple(
        (
            a.name,
            a.against,
            f"{len(a.exact):,}",
            "none" if a.spearman is None else number(a.spearman),
            "; ".join(f"{percent(v)} of the top {percent(k)}" for k, v in a.overlap.items()),
            ", ".join(clean(x, 40) for x in a.missed[:3]) or "nothing",
        )
        for a in (*r.cells, *r.units, r.positions)
    )
    columns = ("effect", "beside", "cells or units", "Spearman", "agree", "missed, strongest first")
    return Table("Which cheap number stands in for the exact effect", columns, rows)


def _map_alt(m: PatchMap) -> str:
    values = array(m.values)
    at = tuple(map(int, np.unravel_index(int(np.nanargmax(np.abs(values))), values.shape)))
    return (
        f"Heatmap of patching {SITES.get(m.site, m.site)}; strongest at {_where(m, at)}: {number(float(values[at]))}."
    )


def _where(m: PatchMap, at: tuple[int, ...]) -> str:
    return ", ".join(_place(m, a, int(k)) for a, k in zip(m.axes, at, strict=True))


def _place(m: PatchMap, axis: str, k: int) -> str:
    """'layer 3', 'head 4', or a position counted from the end with its token, where all prompts share it."""
    label = m.labels[axis][k]
    if axis != "pos":
        return f"{'layer' if axis == 'layer' else m.site} {label}"
    back = k - len(m.labels["pos"])
    return f"position {back}" if label == str(back) else f"position {back} (“{drawable(label, 20)}”)"


def _scatter_alt(a: EffectAgreement) -> str:
    return f"Scatter of {len(a.exact)} units: {a.name} against {a.against}, {_rank(a)}."
