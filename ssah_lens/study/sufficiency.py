"""Is the set enough, not only needed? The aligned model's SCU put into the unaligned one; the SCU ranking kept alone.

Two tests. Transplant: the unaligned model generates with the aligned model's activations of the set, at every step;
does it begin to refuse, more than with a random twin? Faithfulness (after the Mechanistic Interpretability Benchmark,
Mueller et al. 2025, arXiv 2504.13151): all units but the k highest-ranked are mean-ablated; what share of the model's
own distinction between harmful and harmless prompts is left, as k rises from none to all?
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import Tensor

from ssah_lens import stats
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import PromptSet
from ssah_lens.intervene.hooks import ablated
from ssah_lens.intervene.moments import Moments
from ssah_lens.intervene.transplant import generate_with
from ssah_lens.measure.judges import judge
from ssah_lens.measure.refusal import Refusals, log_odds, refusal_scores
from ssah_lens.progress import progress
from ssah_lens.results import Faithfulness, Transplant
from ssah_lens.score.base import PerUnit
from ssah_lens.study.behaviour import outcomes
from ssah_lens.study.keep import Keep, anew
from ssah_lens.units import Kind, UnitSet, top_units

TWINS = 3
KEPT = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of each kind's units that are kept, as in the benchmark."""


def transplant(
    unaligned: ChatModel,
    aligned: ChatModel,
    sets: dict[str, UnitSet],
    harmful: PromptSet,
    harmless: PromptSet,
    tokens: Sequence[int],
    max_new_tokens: int,
    judge_name: str = "keyword",
    keep: Keep = anew,
) -> tuple[Transplant, ...]:
    """The unaligned model on the test prompts, with the units of each set taken from the aligned one.

    Args:
        unaligned: generates.
        aligned: gives its activations; the same shape and vocabulary.
        sets: name -> units; a set without units shows the unaligned model as it is.
        harmful, harmless: prompts.
        tokens: refusal-opening token ids, for the refusal score.
        max_new_tokens: length of a response.
        judge_name: which judge.
        keep: where finished sets are kept.
    """
    decide = judge(judge_name)

    def asked(name: str, units: UnitSet) -> Transplant:
        scores = np.empty(len(harmful))

        def read(rows: list[int], logits: Tensor) -> None:
            scores[rows] = log_odds(logits, tokens).cpu().numpy()

        found = []
        for prompts, at_decision in ((harmful, read), (harmless, None)):
            said = generate_with(unaligned, aligned, units, prompts, max_new_tokens, at_decision)
            texts = [unaligned.text(t) for t in said]
            found.append(Refusals(prompts.name, tuple(decide(prompts.texts, texts)), tuple(texts), tuple(said)))
        return Transplant(name, len(units), outcomes(found[0]), outcomes(found[1]), stats.mean(scores))

    return tuple(
        keep(f"transplant-{name.replace(' ', '-')}", Transplant, partial(asked, name, units))
        for name, units in progress(sets.items(), "moving units")
    )


def sets_to_move(scu: UnitSet, seed: int) -> dict[str, UnitSet]:
    """Nothing (the unaligned model as it is), the SCU, random twins of it, and all units (the most that can be)."""
    everything = UnitSet(scu.grid, {k: np.ones_like(m) for k, m in scu.masks.items()})
    twins = {f"random twin {i + 1}": scu.random_twin(seed + i) for i in range(TWINS)}
    return {"nothing": UnitSet.empty(scu.grid), "SCU": scu, **twins, "all units": everything}


def faithfulness(
    model: ChatModel,
    rankings: dict[str, PerUnit],
    moments: Moments,
    harmful: PromptSet,
    harmless: PromptSet,
    tokens: Sequence[int],
    shares: Sequence[float] = KEPT,
    keep: Keep = anew,
) -> tuple[Faithfulness, ...]:
    """The curve of each ranking, and the area under it.

    The metric is the mean refusal score of harmful prompts less that of harmless ones; faithfulness is its value with
    the kept units over its value with all, both less its value with none.

    Args:
        model: the model.
        rankings: name -> values whose largest units are kept first.
        moments: means that replace all others.
        harmful, harmless: prompts.
        tokens: refusal-opening token ids.
        shares: of each kind's units, rising from 0 to 1.
        keep: where finished rankings are kept.
    """

    everything = UnitSet(model.grid, {k: np.ones((model.grid.n_layers, model.grid.width(k)), dtype=bool) for k in Kind})

    def metric(kept: UnitSet) -> float:
        with ablated(model, everything - kept, "mean", moments):
            return float(refusal_scores(model, harmful, tokens).mean() - refusal_scores(model, harmless, tokens).mean())

    none, whole = metric(UnitSet.empty(model.grid)), metric(everything)

    def curve(name: str, ranking: PerUnit) -> Faithfulness:
        values = [(metric(top_units(model.grid, ranking, s)) if 0 < s < 1 else (none, whole)[round(s)]) for s in shares]
        found = [(v - none) / (whole - none) for v in values]
        area = float(np.trapezoid(found, shares))
        distance = float(np.trapezoid(np.abs(1 - np.array(found)), shares))
        n = len(harmful), len(harmless)
        return Faithfulness(name, tuple(shares), tuple(found), area, distance, whole, none, n)

    return tuple(
        keep(f"faithfulness-{n.replace(' ', '-')}", Faithfulness, partial(curve, n, r))
        for n, r in progress(rankings.items(), "keeping units alone")
    )


def random_ranking(model: ChatModel, seed: int) -> PerUnit:
    """Units in random order, within their kind."""
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=(model.grid.n_layers, model.grid.width(k))) for k in Kind}
