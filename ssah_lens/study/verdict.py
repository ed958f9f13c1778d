"""The rule that every verdict follows."""

from __future__ import annotations

from ssah_lens.results import Verdict
from ssah_lens.stats import Estimate


def verdict(effect: Estimate, threshold: float) -> Verdict:
    """Supported when the interval lies above the threshold, contradicted when it lies below it."""
    if effect.low is None or effect.high is None:
        return Verdict.NOT_SETTLED
    if effect.low >= threshold:
        return Verdict.SUPPORTED
    return Verdict.CONTRADICTED if effect.high < threshold else Verdict.NOT_SETTLED


def worst(*found: Verdict) -> Verdict:
    """Of a claim with several parts: supported when all are, contradicted when any is."""
    if Verdict.CONTRADICTED in found:
        return Verdict.CONTRADICTED
    return Verdict.SUPPORTED if all(f is Verdict.SUPPORTED for f in found) else Verdict.NOT_SETTLED
