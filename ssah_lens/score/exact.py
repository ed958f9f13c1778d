"""The causal effect itself: every unit mean-ablated on its own, by the exact sweep (`intervene/sweep.py`).

I_S is the refusal score (log-odds, nats) that harmful prompts lose without the unit, with its sign; I_U is the KL from
the undamaged model on harmless prompts, in nats. Both are read at the decision position. What is ablated is the unit at
the decision position (or at the last few, or at all: `Measured.last`), which is another estimand than role ablation,
and single effects do not add up (Hydra effect, McGrath et al. 2023, arXiv 2307.15771): sets are always measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.metric import Metric, divergence
from ssah_lens.intervene.sites import Site
from ssah_lens.intervene.sweep import Edits, Fill, all_units, sweep
from ssah_lens.measure.utility import row_log_probs
from ssah_lens.score.base import Calibration, Measured, PerUnit, Scores, nothing
from ssah_lens.units import Kind

HEADS = 0.25
"""Of a random sample at most this share are heads, which are few: a plain sample would hold hardly any."""


def exact(model: ChatModel, data: Calibration) -> Scores:
    """Measures the units that `data.measured` asks for; all others are NaN.

    Raises:
        BadInput: a layer outside the model; no refusal tokens.
    """
    m = data.measured
    edits = units_to_measure(model, m, data.seed)
    safety, utility = (_some(rows, m.prompts, data.seed) for rows in (data.safety, data.utility))
    fill = Fill("mean", data.moments)

    def effect(rows: list[Row], metric: Metric, what: str) -> PerUnit:
        store = _file(m.store, what, data)
        found = sweep(model, rows, metric, edits, fill, m.last, store=store, what=f"exact effects, {what}")
        return _placed(model, edits, found.effect.mean(1))

    lost = effect([r.prompt for r in safety], data.refusal_metric, "refusals") if safety else nothing(model)
    prompts = [r.prompt for r in utility]
    damage = effect(prompts, divergence(row_log_probs(model, prompts)), "answers")
    return Scores({k: -v for k, v in lost.items()}, damage, signed=True)


def units_to_measure(model: ChatModel, m: Measured, seed: int) -> list[Edits]:
    """All units of the wanted layers, or a random sample of them, by kind and layer."""
    everything = all_units(model, layers=m.layers)
    if m.units is None:
        return everything
    if m.units < 2:
        raise BadInput(f"a sample of {m.units} units is too small: allowed are 2 and more")
    by_kind = {k: [(e.layer, u) for e in everything if e.site is Site.of(k) for u in e.units.tolist()] for k in Kind}
    share = HEADS if by_kind[Kind.MLP] else 1.0
    n_heads = min(len(by_kind[Kind.HEAD]), max(1, round(share * m.units)))
    n = {Kind.HEAD: n_heads, Kind.MLP: min(len(by_kind[Kind.MLP]), m.units - n_heads)}
    rng = np.random.default_rng(seed)
    out = []
    for kind in Kind:
        chosen = [by_kind[kind][i] for i in np.sort(rng.choice(len(by_kind[kind]), n[kind], replace=False))]
        for layer in sorted({layer for layer, _ in chosen}):
            out.append(Edits(Site.of(kind), layer, np.array([u for at, u in chosen if at == layer])))
    return out


def _placed(model: ChatModel, edits: Sequence[Edits], values: np.ndarray) -> PerUnit:
    out = {k: np.full((model.grid.n_layers, model.grid.width(k)), np.nan) for k in Kind}
    starts = np.cumsum([0, *(len(e) for e in edits)])
    for e, start, end in zip(edits, starts[:-1], starts[1:], strict=True):
        kind = Kind.MLP if e.site is Site.NEURON else Kind.HEAD
        out[kind][e.layer, e.units] = values[start:end]
    return out


def _some(rows: list[Row], n: int | None, seed: int) -> list[Row]:
    if n is not None and n < len(rows):
        rows = [rows[i] for i in np.sort(np.random.default_rng(seed).choice(len(rows), n, replace=False))]
    return rows


def _file(store: Path | None, what: str, data: Calibration) -> Path | None:
    """The name carries a digest of all that the means and the metric come from: other data never resume here."""
    if store is None:
        return None
    source = [data.refusal_tokens, data.seed, *([r.ids for r in rows] for rows in (data.safety, data.utility))]
    settings = [data.measured.units, data.measured.prompts, data.measured.last, str(data.measured.layers)]
    digest = hashlib.sha256(json.dumps([source, settings]).encode()).hexdigest()[:12]
    return store / f"{what}-{digest}.npy"
