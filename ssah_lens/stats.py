"""Numbers with their uncertainty: every figure that ssah-lens prints is an `Estimate`.

Rates carry Wilson intervals, means and paired differences percentile-bootstrap intervals over prompts
(METHOD.md section 8). statsmodels and scipy do the arithmetic and are imported where they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssah_lens.errors import BadInput

CONFIDENCE = 0.95
N_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval and the number of samples behind it.

    Attributes:
        value: point estimate.
        low: lower end of the interval; None when n is too small to give one.
        high: upper end of the interval; None when n is too small to give one.
        n: number of prompts, tokens, items or runs that the value was computed from.
    """

    value: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3g} n={self.n}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}] n={self.n}"


def rate(hits: Sequence[bool] | np.ndarray) -> Estimate:
    """Share of True with its Wilson interval (Wilson 1927), which behaves at 0% and 100%.

    Args:
        hits: one boolean per prompt.
    """
    from statsmodels.stats.proportion import proportion_confint

    hits = np.asarray(hits, dtype=bool)
    _not_empty(hits)
    low, high = proportion_confint(int(hits.sum()), hits.size, alpha=1 - CONFIDENCE, method="wilson")
    # The ends are exactly 0 of none and 1 of all; the formula leaves 1e-17 there.
    low, high = low if hits.any() else 0.0, 1.0 if hits.all() else high
    return Estimate(float(hits.mean()), float(low), float(high), hits.size)


def complement(share: Estimate) -> Estimate:
    """1 - share, e.g. answered instead of refused."""
    low, high = (None if end is None else 1 - end for end in (share.high, share.low))
    return Estimate(1 - share.value, low, high, share.n)


def rate_difference(first: Estimate, second: Estimate) -> Estimate:
    """first - second of two shares of different prompts, with Newcombe's interval (1998).

    Args:
        first, second: shares as `rate` gives them; n of the result is the smaller one.
    """
    from statsmodels.stats.proportion import confint_proportions_2indep

    hits = [round(e.value * e.n) for e in (first, second)]
    low, high = confint_proportions_2indep(hits[0], first.n, hits[1], second.n, method="newcomb", alpha=1 - CONFIDENCE)
    return Estimate(first.value - second.value, float(low), float(high), min(first.n, second.n))


def mean(values: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """Mean with a percentile-bootstrap interval over the samples.

    Args:
        values: one number per prompt (or item, or run).
        seed: seed of the bootstrap.
    """
    values = np.asarray(values, dtype=np.float64)
    _not_empty(values)
    low, high = _bootstrap(values, seed)
    return Estimate(float(values.mean()), low, high, values.size)


def paired_difference(
    treated: Sequence[float] | np.ndarray, control: Sequence[float] | np.ndarray, seed: int = 0
) -> Estimate:
    """Mean of treated - control over the same prompts, bootstrap over prompts.

    Where every prompt has the same difference of two shares, a bootstrap sees no spread at all; the interval then
    allows for as many unlike prompts as Wilson's does when none of n is.

    Args:
        treated: one number (or boolean) per prompt.
        control: the same prompts in the same order; with several control runs, their mean per prompt.
        seed: seed of the bootstrap.
    """
    treated, control = np.asarray(treated, dtype=np.float64), np.asarray(control, dtype=np.float64)
    if treated.shape != control.shape:
        raise ValueError(f"paired samples need one shape, got {treated.shape} and {control.shape}")
    found = mean(treated - control, seed)
    shares = min(treated.min(), control.min()) >= 0 and max(treated.max(), control.max()) <= 1
    if not shares or np.ptp(treated - control) > 0:
        return found
    return _unseen(found, -1.0)


def mean_share(shares: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """`mean` of one share per prompt, e.g. of the seeds in which it was refused; where all are alike, as above.

    Args:
        shares: one number between 0 and 1 per prompt.
        seed: seed of the bootstrap.
    """
    found = mean(shares, seed)
    return found if np.ptp(shares) > 0 else _unseen(found, 0.0)


def perplexity(losses: Sequence[float] | np.ndarray, tokens: Sequence[int] | np.ndarray, seed: int = 0) -> Estimate:
    """exp of the mean loss per token, bootstrap over texts (n counts the texts).

    Args:
        losses: summed negative log-likelihood in nats, one per text.
        tokens: scored tokens, one per text.
        seed: seed of the bootstrap.
    """
    losses, tokens = np.asarray(losses, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    _not_empty(losses)
    rows = np.random.default_rng(seed).integers(losses.size, size=(N_RESAMPLES, losses.size))
    draws = np.exp(losses[rows].sum(1) / tokens[rows].sum(1))
    low, high = _percentiles(draws) if losses.size > 1 else (None, None)
    return Estimate(float(np.exp(losses.sum() / tokens.sum())), low, high, losses.size)


def _unseen(found: Estimate, least: float) -> Estimate:
    """Of n like samples, allowing for as many unlike ones as Wilson's interval does when none of n is."""
    if found.n < 2:
        return found
    unseen = rate(np.zeros(found.n, dtype=bool)).high or 0.0
    return Estimate(found.value, max(least, found.value - unseen), min(1.0, found.value + unseen), found.n)


def _not_empty(values: np.ndarray) -> None:
    if values.size == 0:
        raise BadInput("no samples: an estimate needs at least one")


def _bootstrap(values: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    if values.size < 2:
        return None, None
    from scipy.stats import bootstrap

    ci = bootstrap(
        (values,),
        np.mean,
        n_resamples=N_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(ci.low), float(ci.high)


def _percentiles(draws: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    return float(np.quantile(draws, tail)), float(np.quantile(draws, 1 - tail))


def auroc(positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """Area under the ROC curve: how often a positive outranks a negative (ties count half).

    The interval is a percentile bootstrap that resamples both sides apart; n counts both.

    Args:
        positive: scores of the positive samples.
        negative: scores of the negative ones.
        seed: seed of the bootstrap.
    """
    positive, negative = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    _not_empty(positive)
    _not_empty(negative)
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES) / n
    draws = np.einsum("rp,pn,rn->r", draw(positive.size), wins, draw(negative.size), optimize=True)
    low, high = _percentiles(draws) if min(positive.size, negative.size) > 1 else (None, None)
    return Estimate(float(wins.mean()), low, high, positive.size + negative.size)


def bands(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over samples with percentile-bootstrap bands, for many numbers at once.

    Args:
        values: [sample, ...]; all numbers of one sample are resampled together.
        seed: seed of the bootstrap.

    Returns:
        Mean, lower and upper end, each of shape [...]; the ends are the mean where there is one sample only.
    """
    values = np.asarray(values, dtype=np.float64)
    _not_empty(values)
    n = len(values)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES) / n
    draws = np.tensordot(weights, values, axes=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return values.mean(0), low, high
