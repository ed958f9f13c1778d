"""Known truth: which score finds the units that were planted, and which does not?

AUROC of the safety units among all others of their kind (mean of neurons and heads), by I_S alone and by the ranking
that SCU are cut from (I_S - I_U). `TABLE` is what was measured with 24 prompts a side; the test measures it again. On
this model the causal scores are right and variance alone is not: a unit that is always on during a refusal does not
vary. It is a small model with one mechanism, so this shows that a score works, not which is best on a real one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted import MARKED, PLAIN, REFUSE, TOPIC, Planted, plant, prompts
from scipy.stats import mannwhitneyu

from ssah_lens.intervene.hooks import ablated
from ssah_lens.intervene.moments import collect
from ssah_lens.measure.judges import Outcome
from ssah_lens.measure.refusal import refusals
from ssah_lens.score import NAMES, score
from ssah_lens.score.base import Calibration, PerUnit, Scores
from ssah_lens.score.roles import ranking
from ssah_lens.units import Kind, Role, UnitSet

N = 24
TABLE = {
    "attribution": (0.996, 1.000),
    "attribution-ig": (0.999, 1.000),
    "contrast": (0.991, 0.726),
    "exact": (0.998, 0.999),
    "mask": (0.999, 0.977),
    "snip": (0.965, 0.998),
    "wanda": (0.917, 0.994),
    "wifv": (0.575, 0.813),
}
"""Score -> AUROC by I_S, by I_S - I_U."""
SAME = 0.03
"""What another machine's rounding may move: one rank of one of the three planted heads is 0.006."""
LEARNT = 0.15
"""The same for `mask`, which is learnt in bfloat16 where the processor has it."""


@pytest.fixture(scope="module")
def planted(make_tokenizer) -> Planted:
    return plant(make_tokenizer)


@pytest.fixture(scope="module")
def data(planted: Planted) -> Calibration:
    model = planted.model
    fulfil = lambda harmful: [MARKED if TOPIC in t else PLAIN for t in prompts(harmful, N).texts]
    rows = lambda harmful, words: model.rows(prompts(harmful, N).texts, [model.response_tokens(w) for w in words])
    safety, utility = rows(True, [REFUSE] * N), rows(False, fulfil(False))
    return Calibration(
        safety, utility, rows(True, fulfil(True)), collect(model, safety), collect(model, utility), steps=40,
        unaligned=planted.unaligned, refusal_tokens=(planted.token(REFUSE),),
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(planted: Planted, data: Calibration) -> dict[str, Scores]:
    return {name: score(name)(planted.model, data) for name in NAMES}


def auroc(values: PerUnit, truth: UnitSet) -> float:
    """Chance that a planted unit ranks above another one of its kind; mean of neurons and heads."""
    out = []
    for kind in Kind:
        mine, others = values[kind][truth.masks[kind]], values[kind][~truth.masks[kind]]
        out.append(mannwhitneyu(mine, others).statistic / (mine.size * others.size))
    return float(np.mean(out))


def test_the_plant_works(planted: Planted, data: Calibration):
    """Without this the rest would say nothing: prompts never used in building it, and a control for each set."""
    model, harmful, harmless = planted.model, prompts(True, 40, 1), prompts(False, 40, 1)
    topical = np.array([TOPIC in t for t in harmless.texts])
    refused = lambda p, m=model: refusals(m, p, max_new_tokens=3).rate(Outcome.REFUSED).value
    answers = lambda: np.array([model.text(t) for t in model.generate(harmless.texts, 3)])
    right = lambda: (answers() == np.where(topical, MARKED, PLAIN)).mean()
    assert (refused(harmful), refused(harmless), right()) == (1, 0, 1)
    assert refused(harmful, planted.unaligned) == 0
    with ablated(model, planted.safety, "mean", data.moments):
        assert (refused(harmful), right()) == (0, 1)
    with ablated(model, planted.utility, "mean", data.moments):
        assert (refused(harmful), right()) == (1, (~topical).mean())
    twin = (planted.safety | planted.utility).random_twin(0)
    with ablated(model, twin, "mean", data.moments):
        assert (refused(harmful), right()) == (1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_each_score_finds_what_the_table_says(planted: Planted, found: dict[str, Scores], name: str):
    got = auroc(found[name].safety, planted.safety), auroc(ranking(found[name], Role.SCU), planted.safety)
    assert got == pytest.approx(TABLE[name], abs=LEARNT if name == "mask" else SAME)


def test_the_best_scores_find_the_planted_units(planted: Planted, found: dict[str, Scores]):
    for name in ("exact", "attribution-ig"):
        assert auroc(found[name].safety, planted.safety) > 0.99
        assert auroc(ranking(found[name], Role.SCU), planted.safety) > 0.99
        assert auroc(ranking(found[name], Role.UCU), planted.utility) > 0.97


def test_signs_of_the_causal_scores(planted: Planted, found: dict[str, Scores]):
    """Without a safety unit refusal falls: I_S > 0. Without a utility unit answers get worse: I_U > 0."""
    for name in ("exact", "attribution", "attribution-ig"):
        assert found[name].signed
        for values, truth in ((found[name].safety, planted.safety), (found[name].utility, planted.utility)):
            assert all((values[k][truth.masks[k]] > 0).all() for k in Kind), name


def test_redundant_units_are_those_that_nothing_needs(planted: Planted, found: dict[str, Scores]):
    """Of the scores with a sign; a gate's way alone would call those redundant that both goals pull at."""
    needed = planted.safety | planted.utility
    for name in ("exact", "attribution-ig", "mask"):
        assert auroc(ranking(found[name], Role.RU), needed) < 0.05, name
    assert auroc(ranking(replace(found["mask"], importance=None), Role.RU), needed) > 0.5
