"""What a unit responds to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Snippet:
    """A unit's activation on a stretch of text: one value per token; `peak` is the strongest token."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    peak: int


@dataclass(frozen=True)
class UnitContext:
    """Where one unit is most active, and what it writes.

    Attributes:
        kind, layer, index: which unit ('mlp' or 'head').
        direct: what one unit of its mean activation adds to the refusing minus the fulfilling logits, straight through
            the unembedding; None where that is not defined.
        examples: name of a prompt set -> the strongest stretches, strongest first. For a head, the norm of its output.
        neighbours: (kind, layer, index, cosine) of the units that write most alike.
    """

    kind: str
    layer: int
    index: int
    direct: float | None
    examples: dict[str, tuple[Snippet, ...]]
    neighbours: tuple[tuple[str, int, int, float], ...] = ()


@dataclass(frozen=True)
class ContextsResult:
    """Stage `contexts`: what the SCU that rank highest respond to and write, highest first."""

    units: tuple[UnitContext, ...]
