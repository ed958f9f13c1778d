"""Near-duplicates among a few thousand short texts: shared words first, then rapidfuzz on what is left.

Scoring every pair with rapidfuzz takes 3 microseconds a pair; a sparse product counts the words that all pairs share
at once, and only texts with enough words in common are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

MIN_SHARED = 0.4
"""Share of the shorter text's distinct words that both must hold to be compared at all."""
WORD = r"[^\W_]+"
"""As rapidfuzz' default processor sees words."""


def similar(texts: Sequence[str], limit: float, scorer: Callable[..., float] | None = None) -> list[tuple]:
    """Pairs of texts with a similarity above the limit.

    Args:
        texts: any number.
        limit: 0 to 1.
        scorer: of rapidfuzz; by default token-set similarity: 1 when one text's words all stand in the other.

    Returns:
        (row, other row, similarity), row < other row, most similar first.
    """
    from rapidfuzz import fuzz, process, utils
    from sklearn.feature_extraction.text import CountVectorizer

    if len(texts) < 2:
        return []
    words: Any = CountVectorizer(token_pattern=WORD, binary=True, dtype=np.int32).fit_transform(texts)
    distinct = np.asarray(words.sum(1)).ravel()
    shared = (words @ words.T).tocoo()
    near = (shared.row < shared.col) & (
        shared.data >= MIN_SHARED * np.minimum(distinct[shared.row], distinct[shared.col])
    )
    rows, others = shared.row[near], shared.col[near]
    scores = process.cpdist(
        [texts[i] for i in rows],
        [texts[j] for j in others],
        scorer=scorer or fuzz.token_set_ratio,
        processor=utils.default_process,
        dtype=np.float64,
        workers=-1,
    )
    found = [(int(i), int(j), float(s) / 100) for i, j, s in zip(rows, others, scores, strict=True) if s > 100 * limit]
    return sorted(found, key=lambda f: (-f[2], f[0], f[1]))
