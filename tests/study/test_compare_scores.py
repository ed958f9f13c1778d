"""Comparing scores: the curve by hand, the agreement by hand, and the whole on a model whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from planted import Planted, plant, prompts
from pydantic import TypeAdapter

from ssah_lens.config import UnitsConfig
from ssah_lens.errors import BadInput
from ssah_lens.results import ScoreComparison
from ssah_lens.score.base import Calibration, Measured
from ssah_lens.study.behaviour import Yardstick, yardstick
from ssah_lens.study.compare_scores import at_equal_utility, compare_scores, matches, shared_tops
from ssah_lens.study.keep import keep_in
from ssah_lens.study.units import calibrate
from ssah_lens.units import Kind

DOSES = (0.02, 0.04, 0.08)


@pytest.fixture(scope="module")
def planted(make_tokenizer) -> Planted:
    return plant(make_tokenizer)


@pytest.fixture(scope="module")
def data(planted: Planted) -> Calibration:
    harmful, harmless = prompts(True, 24), prompts(False, 24)
    config = UnitsConfig(score="exact", exact_prompts=12, steps=10)
    return calibrate(planted.model, planted.unaligned, harmful, harmless, config, 0)


@pytest.fixture(scope="module")
def y(planted: Planted, data: Calibration) -> Yardstick:
    return yardstick(
        planted.model, prompts(True, 20, 5), prompts(False, 20, 5), data.refusal_tokens, max_new_tokens=3, choices=0
    )


@pytest.fixture(scope="module")
def found(planted: Planted, data: Calibration, y: Yardstick) -> ScoreComparison:
    return compare_scores(planted.model, data, y, doses=DOSES)


@pytest.mark.parametrize(
    ("rise", "lost", "want"),
    [
        ([0.1, 0.2], [0.3, 0.6], 0.6),  # never reaches the budget: the last dose
        ([0.5, 1.0], [0.4, 0.8], 0.2),  # half of the way to the first dose
        ([0.1, 0.4], [0.2, 0.8], 0.5),  # between doses
        ([0.25], [0.7], 0.7),  # on the budget
        ([0.1, 0.4, 0.2], [0.2, 0.2, 0.9], 0.9),  # comes back within it
        ([0.1], [-0.3], 0.0),  # refuses more: nothing is lost
        ([-0.1, 0.6], [0.1, 0.8], 0.45),  # answers get better at first
    ],
)
def test_refusal_lost_at_equal_utility_by_hand(rise, lost, want):
    assert at_equal_utility(rise, lost, 0.25) == pytest.approx(want)


def test_matches_compare_what_both_have():
    nan = np.nan
    heads = np.zeros((1, 2))
    exact = {Kind.MLP: np.array([[3.0, 1.0, nan, 2.0]]), Kind.HEAD: heads}
    got = matches(exact, {Kind.MLP: np.array([[30.0, 10.0, 99.0, 20.0]]), Kind.HEAD: heads})
    assert (got["mlp"].spearman, got["mlp"].overlap, got["mlp"].n) == (pytest.approx(1), 1, 3)
    assert got["head"].spearman is None
    other = matches(exact, {Kind.MLP: np.array([[nan, 2.0, 0.0, 1.0]]), Kind.HEAD: np.full((1, 2), nan)})
    assert (other["mlp"].spearman, other["mlp"].overlap, other["mlp"].n) == (pytest.approx(-1), 0, 2)
    assert "head" not in other


def test_every_score_is_compared(planted: Planted, found: ScoreComparison):
    names = [s.name for s in found.scores]
    assert names == ["attribution", "attribution-ig", "contrast", "exact", "mask", "snip", "wanda", "wifv", "random"]
    by = {s.name: s for s in found.scores}
    assert found.baseline.harmful.refused.value == 1 and found.exact_prompts == 12
    assert found.estimand == "the mean of its position class at the decision position"
    for s in found.scores:
        assert [d.share for d in s.doses] == list(DOSES) and s.safety["mlp"].n == 160 and s.safety["head"].n == 32
    assert by["exact"].safety["mlp"].spearman == pytest.approx(1) and by["exact"].safety["mlp"].overlap == 1
    assert by["attribution-ig"].safety["mlp"].spearman > 0.5 > abs(by["random"].safety["mlp"].spearman)


def test_planted_units_carry_refusal_and_random_ones_do_not(found: ScoreComparison):
    by = {s.name: s for s in found.scores}
    assert by["exact"].refusal_lost == by["attribution-ig"].refusal_lost == 1
    assert by["random"].refusal_lost < 0.2
    assert by["exact"].score_lost > 5 > by["random"].score_lost
    assert by[found.best].refusal_lost == 1


def test_cost_is_counted_in_passes_over_the_calibration_data(found: ScoreComparison):
    by = {s.name: s for s in found.scores}
    assert by["wanda"].passes == by["wifv"].passes == by["random"].passes == 0
    assert by["snip"].passes == pytest.approx(1, abs=0.01)  # all rows, once (the backward pass is not counted)
    assert by["contrast"].passes == pytest.approx(2, abs=0.5)  # both models; padding counts
    # half of the data (the refusals' prompts) once and half (the answers) twice; IG and the sweep run single blocks
    assert 1 < by["attribution"].passes < 2 and by["exact"].passes > 2
    assert all(s.seconds >= 0 for s in found.scores) and found.exact_seconds > 0


def test_top_units_in_common_by_hand():
    tops = {"a": {"mlp": [1, 2, 3], "head": [0]}, "b": {"mlp": [2, 3, 9], "head": [1]}}
    assert shared_tops(tops) == {"a": {"a": 1, "b": 0.5}, "b": {"a": 0.5, "b": 1}}


def test_finished_scores_are_not_run_again(planted, data, y, tmp_path, monkeypatch: pytest.MonkeyPatch):
    few = Measured(units=40, prompts=2)
    run = lambda: compare_scores(planted.model, data, y, ["wanda"], (0.02,), few, keep_in(tmp_path, "run"))
    first = run()
    assert set(first.shared) == {"wanda", "random"} and first.shared["wanda"]["wanda"] == 1
    monkeypatch.setattr("ssah_lens.study.compare_scores.behave", None)
    assert run() == first


def test_the_comparison_can_be_kept(found: ScoreComparison):
    kept = TypeAdapter(ScoreComparison).dump_json(found)
    assert json.loads(kept)["scores"][0]["name"] == "attribution"
    assert TypeAdapter(ScoreComparison).validate_json(kept) == found


def test_a_sample_leaves_exact_out_and_no_counterpart_leaves_contrast_out(planted, data, y):
    alone = replace(data, unaligned=None)
    got = compare_scores(planted.model, alone, y, doses=(0.02,), sample=Measured(units=40, prompts=4), names=["wanda"])
    assert [s.name for s in got.scores] == ["wanda", "random"] and got.scores[0].safety["mlp"].n == 30
    with pytest.raises(BadInput, match="--unaligned"):
        compare_scores(planted.model, alone, y, ["contrast"], (0.02,), Measured(units=40, prompts=4))


def test_what_cannot_be_compared_is_refused(planted, data, y):
    with pytest.raises(BadInput, match="hardly refuses"):
        compare_scores(planted.model, replace(data, safety=[]), y)
    with pytest.raises(BadInput, match="rising"):
        compare_scores(planted.model, data, y, doses=(0.02, 0.01))
    with pytest.raises(BadInput, match="allowed are"):
        compare_scores(planted.model, data, y, ["luck"])
