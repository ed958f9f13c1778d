"""Tokens in batches: rows of unequal length, padded on the left, after a prefix that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Bool, Int
from torch import Tensor

BATCH_TOKENS = 4096
"""Padded tokens per batch: large enough for full matrix speed on a CPU, small enough for a laptop."""
FORWARD_OVERHEAD = 100
"""What a forward pass costs beside its tokens, in tokens (measured: hooks and small kernels of a 30-layer model)."""
STEP_OVERHEAD = 90
"""The same for one decoding step, which reads all weights for one token a row."""
MIN_SHARED = 8
"""Shared tokens under which a prefix is not run apart."""


class Position(IntEnum):
    """Position class of a token; mean ablation keeps one mean per class."""

    TEMPLATE = 0
    INSTRUCTION = 1
    POST_INSTRUCTION = 2
    RESPONSE = 3


@dataclass(frozen=True)
class Row:
    """One unpadded sequence: token ids and the `Position` of each."""

    ids: list[int]
    positions: list[int]

    @property
    def prompt(self) -> Row:
        """The row up to its decision position: without the response."""
        end = _decision(self) + 1
        return Row(self.ids[:end], self.positions[:end])


@dataclass(frozen=True)
class Batch:
    """Left-padded tokens, after a prefix that all rows share (as chat templates make them do).

    Attributes:
        ids: token ids, without the prefix.
        mask: 1 = a real token.
        positions: `Position` of each token (TEMPLATE on padding, where `mask` is 0).
        prefix: the shared prefix; it is run once for the whole batch, and its keys and values are reused (exact).
    """

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    positions: Int[Tensor, "batch pos"]
    prefix: Row | None = None

    @property
    def response(self) -> Bool[Tensor, "batch pos"]:
        """True on response tokens."""
        return (self.positions == Position.RESPONSE) & (self.mask == 1)

    @property
    def response_rows(self) -> Int[Tensor, " token"]:
        """Row of each response token, in the order of `response`."""
        return self.response.nonzero()[:, 0]

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(self.ids.to(device), self.mask.to(device), self.positions.to(device), self.prefix)


def by_length(
    rows: Sequence[Row], batch_tokens: int, overhead: int = FORWARD_OVERHEAD, share_prefix: bool = False
) -> list[list[int]]:
    """Indices of rows in batches of similar length, longest first: the cheapest cut of the sorted rows.

    A batch costs its padded tokens and a fixed overhead; dynamic programming over the sorted rows finds the least sum.

    Args:
        rows: at least one token each.
        batch_tokens: most padded tokens together.
        overhead: what a batch costs beside its tokens, in tokens.
        share_prefix: what all rows begin with is run once a batch and counts as overhead.
    """
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), i))
    shared = _shared_prefix(rows) if share_prefix else 0
    lengths = [len(rows[i].ids) for i in order]
    best, cut = [0.0], [0]
    for end in range(1, len(order) + 1):
        # The first row of a batch is its longest; one row alone always fits.
        first = end - 1
        while first and (end - first + 1) * lengths[first - 1] <= batch_tokens:
            first -= 1
        starts = range(first, end)
        costs = [best[k] + (end - k) * (lengths[k] - shared) + shared + overhead for k in starts]
        at = min(range(len(starts)), key=costs.__getitem__)
        best.append(costs[at])
        cut.append(starts[at])
    out: list[list[int]] = []
    end = len(order)
    while end:
        out.append(order[cut[end] : end])
        end = cut[end]
    return out[::-1]


def pad(rows: Sequence[Row], pad_token: int, share_prefix: bool) -> Batch:
    """One left-padded batch of these rows, in their order.

    Args:
        rows: at least one.
        pad_token: id that fills the left.
        share_prefix: take what all rows begin with out of them.
    """
    shared = _shared_prefix(rows) if share_prefix else 0
    prefix = Row(rows[0].ids[:shared], rows[0].positions[:shared]) if shared else None
    rest = [Row(row.ids[shared:], row.positions[shared:]) for row in rows]
    length = max(len(row.ids) for row in rest)
    ids = torch.full((len(rest), length), pad_token, dtype=torch.long)
    mask, positions = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, row in enumerate(rest):
        start = length - len(row.ids)
        ids[i, start:] = torch.tensor(row.ids)
        mask[i, start:] = 1
        positions[i, start:] = torch.tensor(row.positions)
    return Batch(ids, mask, positions, prefix)


def _decision(row: Row) -> int:
    """Index of the last token before the response."""
    return (row.positions.index(Position.RESPONSE) if Position.RESPONSE in row.positions else len(row.ids)) - 1


def _shared_prefix(rows: Sequence[Row]) -> int:
    """Tokens (and position classes) that all rows begin with; 0 when too few to be worth a pass of their own.

    It ends two tokens before the first response: the decision position is needed for logits, and a remainder of one
    column could not be told from a decoding step.
    """
    if len(rows) < 2:
        return 0
    longest = min(_decision(row) for row in rows) - 1
    first = rows[0]
    n = 0
    while n < longest and all(r.ids[n] == first.ids[n] and r.positions[n] == first.positions[n] for r in rows):
        n += 1
    return n if n >= MIN_SHARED else 0
