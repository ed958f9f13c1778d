"""What moves between matched prompts, and how well guesses agree with the exact effect."""

from __future__ import annotations

from dataclasses import dataclass

from ssah_lens.stats import Estimate


@dataclass(frozen=True)
class PatchMap:
    """How far each patched activation moves the choice: 0 = the corrupted prompt's metric, 1 = the clean one's.

    Attributes:
        model: its name.
        site: 'resid', 'attn', 'mlp', 'head' or 'neuron'.
        noising: False: clean activations put into the corrupted run; True: corrupted ones into the clean run.
        metric: what is read at the decision position; `refusing` and `fulfilling` are the tokens that it compares.
        estimand: what was replaced, and where.
        axes: ('layer', 'pos'), ('layer', 'unit') or ('layer', 'unit', 'pos').
        labels: one text per index of each axis; a position is its token where all prompts share it (both tokens of a
            single pair where it differs), else its place from the end.
        values: effect as nested lists over the axes; None where no pair has such a position.
        low, high: 95% bootstrap interval over pairs, shaped like `values`; None for fewer than two pairs.
        clean, corrupted: the metric of the two unpatched runs.
        n: pairs.
        cells, cells_run: how many there are, and how many had to be run (the others cannot differ).
        method: 'exact', or the name of what approximates it.
    """

    model: str
    site: str
    noising: bool
    metric: str
    refusing: tuple[str, ...]
    fulfilling: tuple[str, ...]
    estimand: str
    axes: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]
    values: list
    low: list | None
    high: list | None
    clean: Estimate
    corrupted: Estimate
    n: int
    cells: int
    cells_run: int
    method: str = "exact"


@dataclass(frozen=True)
class EffectAgreement:
    """Two effects of the same units or cells: a cheap one, or one of another estimand, beside what judges it.

    Attributes:
        name: what is judged.
        against: what judges it.
        estimand: what was replaced by what, and where.
        metric: what was read.
        labels: 'neuron 3.141', 'head 7.2' (layer, index); the same order as `exact` and `guess`.
        exact, guess: change of the metric, mean over prompts; the effect of a cell, for a map.
        spearman: rank correlation; None when one of the two is the same everywhere.
        overlap: top share by size -> how much of the exact top is in the guess's top.
        missed: of the exact top, what the guess does not rank there, strongest first.
        n: prompts, or pairs.
    """

    name: str
    against: str
    estimand: str
    metric: str
    labels: tuple[str, ...]
    exact: tuple[float, ...]
    guess: tuple[float, ...]
    spearman: float | None
    overlap: dict[float, float]
    missed: tuple[str, ...]
    n: int


@dataclass(frozen=True)
class PatchResult:
    """Stage `patch`.

    Attributes:
        maps: exact maps, one per site.
        cells: attribution patching of each map's cells beside the exact ones.
        units: attribution patching, and integrated gradients, of a random sample of units beside their exact effect.
        positions: effect at the decision position beside effect at all positions, on the same units.
    """

    maps: tuple[PatchMap, ...]
    cells: tuple[EffectAgreement, ...]
    units: tuple[EffectAgreement, ...]
    positions: EffectAgreement
