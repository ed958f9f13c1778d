"""Do single words tell the sides of the shipped pairs apart?

A probe that reads "the model knows this is harmful" may only read words that stand on one side. So a classifier that
sees nothing but word counts is trained on the train pairs and scored on the test pairs: an AUROC near 0.5 means that
it takes meaning to tell the sides apart. The same figure for harmful requests against ordinary instructions, the
unmatched contrast that the field mostly uses (AdvBench against Alpaca), says how much matching takes away. Artefacts
of this kind are known from entailment sets, where the hypothesis alone gave the label away (Gururangan et al. 2018,
"Annotation Artifacts in Natural Language Inference Data").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ssah_lens.stats import CONFIDENCE, N_RESAMPLES, Estimate, mean

WORD = r"[\w']+"
MIN_ROWS = 5
"""Prompts that a word must stand in to be called a leak."""
MIN_Z = 2.0
"""|harmful - harmless| / sqrt(harmful + harmless): what sampling alone leaves behind in one word of twenty."""


@dataclass(frozen=True)
class LeakyWord:
    """A word and how many harmful and harmless prompts it stands in."""

    word: str
    harmful: int
    harmless: int


@dataclass(frozen=True)
class Leak:
    """What word counts know.

    Attributes:
        matched: AUROC, harmful test requests against their twins.
        twins: share of test pairs of which the harmful side scores above its own twin (a harder test of matching:
            topic is the same inside a pair).
        unmatched: AUROC, harmful test requests against ordinary test instructions.
        words: words that lean to one side in all pairs, the strongest first.
    """

    matched: Estimate
    twins: Estimate
    unmatched: Estimate
    words: tuple[LeakyWord, ...]


def leak(
    train: tuple[Sequence[str], Sequence[str]],
    test: tuple[Sequence[str], Sequence[str]],
    ordinary: tuple[Sequence[str], Sequence[str]],
    seed: int = 0,
) -> Leak:
    """Trains on word counts of one split and scores the other.

    Args:
        train, test: harmful and harmless texts, row i of one is the twin of row i of the other.
        ordinary: train and test instructions that are nobody's twins.
        seed: seed of the bootstrap.
    """
    bad, good = scores(*train, *test)
    stranger, usual = scores(train[0], ordinary[0], test[0], ordinary[1])
    return Leak(
        auroc(bad, good, paired=True, seed=seed),
        mean((bad > good) + 0.5 * (bad == good), seed),
        auroc(stranger, usual, paired=False, seed=seed),
        leaky_words([*train[0], *test[0]], [*train[1], *test[1]]),
    )


def scores(
    harmful: Sequence[str], harmless: Sequence[str], *new: Sequence[str]
) -> tuple[Float[np.ndarray, " text"], ...]:
    """How harmful a bag-of-words logistic regression (L2, C = 1) finds new texts: log-odds, one array per set."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(CountVectorizer(token_pattern=WORD), LogisticRegression(max_iter=1000))
    model.fit([*harmful, *harmless], [1] * len(harmful) + [0] * len(harmless))
    return tuple(model.decision_function(list(texts)) for texts in new)


def auroc(
    positive: Float[np.ndarray, " text"], negative: Float[np.ndarray, " text"], paired: bool, seed: int = 0
) -> Estimate:
    """Probability that a positive scores above a negative (ties half), bootstrap over pairs or over each side.

    Args:
        positive, negative: scores.
        paired: row i of both is one pair, resampled together.
        seed: seed of the bootstrap.
    """
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES) / n
    first = draw(len(positive))
    second = first if paired else draw(len(negative))
    draws = ((first @ wins) * second).sum(1)
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(wins.mean()), float(low), float(high), len(positive) + len(negative))


def leaky_words(harmful: Sequence[str], harmless: Sequence[str]) -> tuple[LeakyWord, ...]:
    """Words that stand in clearly more prompts of one side than of the other, the strongest lean first."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(token_pattern=WORD, binary=True)
    found = counter.fit_transform([*harmful, *harmless])
    bad, good = (np.asarray(part.sum(0)).ravel() for part in (found[: len(harmful)], found[len(harmful) :]))
    z = np.abs(bad - good) / np.sqrt(bad + good)
    words = counter.get_feature_names_out()
    order = [i for i in np.lexsort((words, -z)) if z[i] >= MIN_Z and bad[i] + good[i] >= MIN_ROWS]
    return tuple(LeakyWord(str(words[i]), int(bad[i]), int(good[i])) for i in order)
