"""Estimates against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ssah_lens import stats
from ssah_lens.errors import BadInput

Z2 = 1.959963984540054**2


def test_wilson_interval_of_one_half():
    # centre 1/2; half-width z sqrt(1/4n + z^2/4n^2) / (1 + z^2/n) at n = 10
    half = math.sqrt(Z2) * math.sqrt(0.025 + Z2 / 400) / (1 + Z2 / 10)
    got = stats.rate([True] * 5 + [False] * 5)
    assert (got.value, got.n) == (0.5, 10)
    assert got.low == pytest.approx(0.5 - half, abs=1e-12)
    assert got.high == pytest.approx(0.5 + half, abs=1e-12)
    assert (round(got.low, 4), round(got.high, 4)) == (0.2366, 0.7634)


def test_wilson_interval_at_the_ends():
    none, every = stats.rate([False] * 10), stats.rate(np.ones(10, dtype=bool))
    # At 0 of n the upper end is z^2 / (n + z^2).
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(Z2 / (10 + Z2), abs=1e-12)
    assert (every.value, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(10 / (10 + Z2), abs=1e-12)
    assert str(stats.rate([False] * 24)) == "0 [0, 0.138] n=24"


def test_one_prompt_still_has_an_interval():
    got = stats.rate([True])
    assert got.n == 1 and got.low < 0.25 and got.high == pytest.approx(1)


def test_mean_and_its_bootstrap_interval():
    values = np.random.default_rng(3).normal(5, 2, size=400)
    got = stats.mean(values)
    half = 1.96 * values.std() / 20
    assert got.value == pytest.approx(values.mean(), abs=1e-12) and got.n == 400
    assert got.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert got.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_the_seed_decides_the_interval():
    values = np.random.default_rng(3).normal(size=30)
    assert stats.mean(values, seed=1) == stats.mean(values, seed=1)
    assert stats.mean(values, seed=1).low != stats.mean(values, seed=2).low


def test_no_spread_gives_an_interval_of_no_width():
    got = stats.mean([2.5] * 7)
    assert (got.value, got.low, got.high, got.n) == (2.5, 2.5, 2.5, 7)


def test_one_value_has_no_interval():
    assert stats.mean([3.0]) == stats.Estimate(3.0, None, None, 1)


def test_paired_difference_uses_the_pairs():
    control = np.random.default_rng(0).normal(0, 100, size=50)
    got = stats.paired_difference(control + 0.5, control)
    # Unpaired, the interval would be tens wide.
    assert got.value == pytest.approx(0.5) and got.low == pytest.approx(0.5) and got.high == pytest.approx(0.5)


def test_paired_difference_of_booleans_has_a_sign():
    got = stats.paired_difference([True, True, False, True], [False, True, True, False])
    assert got.value == 0.25 and got.n == 4 and got.low <= 0.25 <= got.high


@pytest.mark.parametrize("before, after, value", [(1, 1, 0.0), (0, 1, 1.0), (1, 0, -1.0)])
def test_prompts_that_all_change_alike_leave_room_for_others(before: int, after: int, value: float):
    """Of 30 alike, up to 11.4% may be otherwise (Wilson); a bootstrap would say that none can."""
    got = stats.paired_difference([after] * 30, [before] * 30)
    assert got.value == value
    assert got.low == pytest.approx(max(-1, value - 0.1135), abs=1e-3)
    assert got.high == pytest.approx(min(1, value + 0.1135), abs=1e-3)


def test_paired_difference_wants_pairs():
    with pytest.raises(ValueError, match="one shape"):
        stats.paired_difference([1.0, 2.0], [1.0])


def test_perplexity_weighs_texts_by_their_tokens():
    got = stats.perplexity([1.0, 6.0], [1, 3])
    assert got.value == pytest.approx(math.exp(7 / 4)) and got.n == 2
    # Resamples are (1,1), (1,6), (6,6): exp 1, exp 7/4, exp 2; both ends are likelier than 2.5%.
    assert (got.low, got.high) == (pytest.approx(math.e), pytest.approx(math.exp(2)))


def test_perplexity_of_equal_texts_has_no_width():
    got = stats.perplexity([2.0, 4.0], [1, 2])
    assert (got.value, got.low, got.high) == (pytest.approx(math.exp(2)),) * 3


def test_perplexity_of_one_text_has_no_interval():
    assert stats.perplexity([math.log(8)], [1]) == stats.Estimate(pytest.approx(8), None, None, 1)


@pytest.mark.parametrize("estimate", [lambda: stats.rate([]), lambda: stats.mean([]), lambda: stats.perplexity([], [])])
def test_nothing_cannot_be_estimated(estimate):
    with pytest.raises(BadInput, match="at least one"):
        estimate()


def test_an_estimate_reads_as_value_interval_n():
    assert str(stats.Estimate(0.5, 0.25, 0.75, 8)) == "0.5 [0.25, 0.75] n=8"
    assert str(stats.Estimate(0.5, None, None, 1)) == "0.5 n=1"


def test_auroc_counts_pairs_and_ties_by_half():
    e = stats.auroc([3, 2], [1, 2])
    assert (e.value, e.n) == ((1 + 1 + 1 + 0.5) / 4, 4) and e.low <= e.value <= e.high
    assert stats.auroc([2, 3, 4], [0, 1]).value == stats.auroc([2, 3, 4], [0, 1]).low == 1
    assert stats.auroc([1], [0]).low is None
    with pytest.raises(BadInput):
        stats.auroc([], [1])


def test_auroc_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = 0.7602  # two normals one standard deviation apart: Phi(1 / sqrt 2)
    found = [stats.auroc(rng.normal(1, 1, 40), rng.normal(0, 1, 40), seed=i) for i in range(60)]
    assert 0.85 <= np.mean([e.low <= truth <= e.high for e in found]) <= 1


def test_bands_are_means_with_an_interval_per_number():
    values = np.stack([np.zeros(50), np.arange(50.0)], 1)
    mean_, low, high = stats.bands(values)
    assert mean_.tolist() == [0, 24.5] and low[0] == high[0] == 0 and low[1] < 24.5 < high[1]
    e = stats.mean(values[:, 1])
    assert low[1] == pytest.approx(e.low, abs=0.7) and high[1] == pytest.approx(e.high, abs=0.7)


def test_a_share_that_is_the_same_everywhere_has_the_interval_of_none_of_n():
    """A bootstrap of equal numbers would claim that 0% was measured exactly."""
    none, half = stats.mean_share([0.0] * 12), stats.mean_share([0.5] * 12)
    unseen = Z2 / (12 + Z2)
    assert (none.low, half.low) == (0.0, pytest.approx(0.5 - unseen)) and none.high == pytest.approx(unseen)
    assert stats.mean_share([0.0, 0.5, 1.0]) == stats.mean([0.0, 0.5, 1.0])
    assert stats.mean_share([0.5]).low is None


def test_what_is_not_refused_is_answered():
    got = stats.complement(stats.rate([True] * 3 + [False] * 17))
    assert got.value == pytest.approx(0.85) and got.low < 0.85 < got.high and got.n == 20
    back = stats.complement(got)
    assert (back.value, back.low) == (pytest.approx(0.15), pytest.approx(stats.rate([True] * 3 + [False] * 17).low))


def test_the_difference_of_two_shares_has_newcombes_interval():
    """His worked example (1998, table II): 56 of 70 and 48 of 80, difference 0.2, method 10."""
    share = lambda hits, n: stats.rate(np.arange(n) < hits)
    got = stats.rate_difference(share(56, 70), share(48, 80))
    assert (round(got.value, 4), round(got.low, 4), round(got.high, 4), got.n) == (0.2, 0.0524, 0.3339, 70)
