"""Activation patching over token-aligned pairs: which activation, moved from one run to the other, moves the choice?

Denoising runs the corrupted prompt and puts in activations of the clean one; noising the other way round. Both are
normalised alike: 0 is the corrupted prompt's metric, 1 the clean one's (Heimersheim and Nanda 2024, arXiv 2404.15255).
All cells go through the exact sweep. Before the first token in which a pair differs the two runs are the same, so
patching there changes nothing: those cells are known and not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.promptset import Prompt
from ssah_lens.errors import BadInput
from ssah_lens.intervene.edits import check_layers
from ssah_lens.intervene.metric import Metric, finite, metric_of
from ssah_lens.intervene.sites import Site
from ssah_lens.intervene.sweep import Edits, Fill, sweep
from ssah_lens.stats import CONFIDENCE, N_RESAMPLES

if TYPE_CHECKING:
    from transformer_lens.patching import PatchingResult

MIN_CONTRAST = 1e-6
"""Below this difference of the metric a pair has nothing to explain, and a normalised effect means nothing."""


@dataclass(frozen=True)
class Patched:
    """The metric with each activation patched.

    Attributes:
        site: which activation.
        noising: False: clean into corrupted; True: corrupted into clean.
        axes: names of the axes of `values` before the last, e.g. ('layer', 'pos').
        labels: per axis. Positions are counted from the end (-1 is the decision position), with their token where all
            prompts share it; for a single pair the tokens of the run that is patched.
        values: [*axes, pair]; NaN where a pair has no such position.
        clean, corrupted: metric of the two unpatched runs, [pair].
        metric: its name.
        cells, cells_run: how many there are, and how many had to be run.
        method: 'exact', or the name of what approximates it.
        estimand: what an activation was replaced by, and at which positions.
    """

    site: Site
    noising: bool
    axes: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]
    values: Float[np.ndarray, "*axes pair"]
    clean: Float[np.ndarray, " pair"]
    corrupted: Float[np.ndarray, " pair"]
    metric: str
    cells: int
    cells_run: int
    method: str = "exact"
    estimand: str = ""

    @property
    def effect(self) -> Float[np.ndarray, "*axes"]:
        """Normalised effect over all pairs: 0 = corrupted, 1 = clean (a ratio of means: stable for weak pairs)."""
        return _ratio(self.values, self.clean, self.corrupted)

    def interval(self, seed: int = 0) -> tuple[Float[np.ndarray, "*axes"], Float[np.ndarray, "*axes"]]:
        """95% percentile-bootstrap interval of `effect` over pairs."""
        rng = np.random.default_rng(seed)
        n = len(self.clean)
        chosen = rng.integers(n, size=(N_RESAMPLES, n))
        draws = np.stack([_ratio(self.values[..., i], self.clean[i], self.corrupted[i]) for i in chosen])
        tail = (1 - CONFIDENCE) / 2
        return np.nanquantile(draws, tail, axis=0), np.nanquantile(draws, 1 - tail, axis=0)

    def to_patching_result(self) -> PatchingResult:
        """The same as TransformerLens' own result, with its statistics; its baseline is the run that was patched.

        Layers and positions are counted from 0 there, whatever layers were patched.
        """
        import pandas as pd
        import torch
        from transformer_lens.patching import PatchingResult

        cells = pd.DataFrame(list(np.ndindex(self.values.shape[:-1])), columns=list(self.axes))
        base = self.clean if self.noising else self.corrupted
        return PatchingResult(
            torch.as_tensor(self.values), list(self.axes), cells, ["metric"], False, torch.as_tensor(base)
        )


def activation_patching(
    model: ChatModel,
    clean: Sequence[str | Prompt],
    corrupted: Sequence[str | Prompt],
    metric: Metric,
    site: Site,
    by_position: bool | None = None,
    noising: bool = False,
    layers: Sequence[int] | None = None,
    engine: str = "auto",
    store: Path | None = None,
) -> Patched:
    """Patches one site everywhere, over pairs of prompts.

    Args:
        model: the model.
        clean, corrupted: prompts; both sides of a pair have the same number of tokens.
        metric: what to read at the decision position.
        site: residual stream, attention or MLP output, head or neuron.
        by_position: an axis of positions; by default for the sites that are one vector per position. Otherwise all
            positions of a unit are patched at once.
        noising: patch corrupted into clean instead.
        layers: which layers; all by default (for neurons, one or a few are wise).
        engine: 'auto', 'replay' or 'loop', as for `sweep`.
        store: .npy file that finished cells are kept in; the same call resumes there.

    Raises:
        BadInput: pairs that are not token-aligned, or that do not differ in tokens or in the metric; a layer outside
            the model; a metric that is not finite.
    """
    task = Task.of(model, clean, corrupted, site, by_position, noising, layers)
    edits = [_edits(site, layer, task.n_units, task.differ, task.by_position) for layer in task.layers]
    fill = Fill("patch", source=task.source)
    other = finite(metric_of(model, task.source, metric), metric, f"on the {task.names[1]} prompts")
    swept = sweep(model, task.run, metric, edits, fill, None, engine, store=store, what=f"patching {site}")
    values = np.broadcast_to(swept.clean, task.shape).copy()
    at = 0
    for i, e in enumerate(edits):
        columns = task.differ.shape[1] - e.reaches(0, task.differ.shape[1]) if task.by_position else 0
        values[i, e.units, columns] = swept.values[at : at + len(e)]
        at += len(e)
    return task.patched(model, metric, values, swept.clean, other, at)


@dataclass(frozen=True)
class Task:
    """What is patched, checked.

    Attributes:
        site, noising: as for `activation_patching`.
        run, source: the rows that are patched, and those that activations are taken from.
        differ: True where a pair's tokens differ, columns counted from the end, [pair, pos].
        by_position: whether positions are an axis.
        layers: which layers.
        n_units: units of a layer.
    """

    site: Site
    noising: bool
    run: list[Row]
    source: list[Row]
    differ: Bool[np.ndarray, "pair pos"]
    by_position: bool
    layers: tuple[int, ...]
    n_units: int

    @classmethod
    def of(
        cls,
        model: ChatModel,
        clean: Sequence[str | Prompt],
        corrupted: Sequence[str | Prompt],
        site: Site,
        by_position: bool | None,
        noising: bool,
        layers: Sequence[int] | None,
    ) -> Task:
        """Arguments as for `activation_patching`."""
        check_layers(model, layers)
        rows = aligned_rows(model, clean, corrupted)
        differ = _differ(*rows)
        by_position = site not in (Site.HEAD, Site.NEURON) if by_position is None else by_position
        layers = tuple(range(model.grid.n_layers) if layers is None else layers)
        run, source = rows if noising else rows[::-1]
        return cls(site, noising, run, source, differ, by_position, layers, site.units(model.anatomy))

    @property
    def names(self) -> tuple[str, str]:
        """Which side is patched, and which one activations are taken from."""
        return ("clean", "corrupted") if self.noising else ("corrupted", "clean")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Layers, units, positions (one where they are no axis), pairs."""
        return len(self.layers), self.n_units, self.differ.shape[1] if self.by_position else 1, len(self.run)

    def patched(
        self,
        model: ChatModel,
        metric: Metric,
        values: Float[np.ndarray, "layer unit pos pair"],
        base: Float[np.ndarray, " pair"],
        other: Float[np.ndarray, " pair"],
        cells_run: int,
        method: str = "exact",
    ) -> Patched:
        """Labels what was found.

        Args:
            model, metric: what was patched, and what was read.
            values: metric with each cell patched.
            base, other: of the run that is patched, and of the other one.
            cells_run: how many cells had to be run.
            method: how.

        Raises:
            BadInput: the two runs have the same metric, or a metric is not finite.
        """
        finite(base, metric, f"on the {self.names[0]} prompts")
        finite(other, metric, f"on the {self.names[1]} prompts")
        finite(values, metric, f"with {self.site} patched")
        if abs(np.mean(base - other)) < MIN_CONTRAST:
            raise BadInput(
                f"clean and corrupted prompts have the same {metric.name}: there is no difference to explain"
            )
        keep = {"layer": True, "unit": self.n_units > 1, "pos": self.by_position}
        if self.by_position:
            values = _exact_no_ops(values, base, self.differ, self.run)
        labels = {
            "layer": tuple(map(str, self.layers)),
            "unit": tuple(map(str, range(self.n_units))),
            "pos": _tokens(model, self.run),
        }
        ends = (base, other) if self.noising else (other, base)
        return Patched(
            self.site,
            self.noising,
            tuple(a for a, kept in keep.items() if kept),
            {a: labels[a] for a, kept in keep.items() if kept},
            values.reshape([n for n, kept in zip(values.shape, (*keep.values(), True), strict=True) if kept]),
            *ends,
            metric.name,
            int(np.prod(self.shape[:3])),
            cells_run,
            method,
            f"its value in the {self.names[1]} run, "
            + ("one position at a time" if self.by_position else "all positions at once"),
        )


def _edits(site: Site, layer: int, n_units: int, differ: Bool[np.ndarray, "pair pos"], by_position: bool) -> Edits:
    """Only the cells that can differ: from the first differing token on; below block 0, differing tokens alone."""
    reached = np.logical_or.accumulate(differ, 1).any(0)
    if not by_position:
        return Edits(site, layer, np.arange(n_units), np.broadcast_to(reached, (n_units, differ.shape[1])))
    columns = np.flatnonzero(differ.any(0) if site is Site.RESID and layer == 0 else reached)
    window = np.eye(differ.shape[1], dtype=bool)[columns]
    return Edits(site, layer, np.repeat(np.arange(n_units), len(columns)), np.tile(window, (n_units, 1)))


def _exact_no_ops(values: np.ndarray, base: np.ndarray, differ: np.ndarray, rows: Sequence[Row]) -> np.ndarray:
    """Positions before a pair's own first difference keep its baseline to the bit; those that it lacks are NaN."""
    n_pos = differ.shape[1]
    reached = np.logical_or.accumulate(differ, 1).T  # [pos, pair]
    exists = np.array([[n_pos - len(r.ids) <= c for r in rows] for c in range(n_pos)])
    return np.where(exists, np.where(reached, values, base), np.nan)


def aligned_rows(
    model: ChatModel, clean: Sequence[str | Prompt], corrupted: Sequence[str | Prompt]
) -> tuple[list[Row], list[Row]]:
    """The rows of both sides.

    Raises:
        BadInput: sides of unequal number, pairs of unequal length or of the same tokens; all of them are named.
    """
    if len(clean) != len(corrupted) or not clean:
        raise BadInput(f"patching needs pairs: got {len(clean)} clean and {len(corrupted)} corrupted prompts")
    rows = model.rows(clean), model.rows(corrupted)
    unequal = [i for i, (a, b) in enumerate(zip(*rows, strict=True), 1) if len(a.ids) != len(b.ids)]
    if unequal:
        a, b = (len(side[unequal[0] - 1].ids) for side in rows)
        which = f"pair {unequal[0]}" if len(clean) > 1 else "the pair"
        more = f" ({len(unequal)} of {len(clean)} pairs are not: {_some(unequal)})" if len(unequal) > 1 else ""
        raise BadInput(
            f"{which} is not token-aligned: {a} and {b} tokens for {model.name}{more}; patching needs the same number: "
            "change a word, or choose pairs with ssah_lens.token_aligned"
        )
    same = [i for i, (a, b) in enumerate(zip(*rows, strict=True), 1) if a.ids == b.ids]
    if same:
        raise BadInput(f"pair {_some(same)}: both prompts are the same tokens; a pair must differ")
    return rows


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _differ(clean: list[Row], corrupted: list[Row]) -> Bool[np.ndarray, "pair pos"]:
    """True where a pair's tokens differ, columns counted from the end."""
    n_pos = max(len(r.ids) for r in clean)
    differ = np.zeros((len(clean), n_pos), dtype=bool)
    for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
        differ[i, n_pos - len(a.ids) :] = np.array(a.ids) != np.array(b.ids)
    return differ


def _tokens(model: ChatModel, rows: Sequence[Row]) -> tuple[str, ...]:
    """Labels of positions: the token where all prompts have the same one, else its place from the end."""
    n_pos = max(len(r.ids) for r in rows)
    out = []
    for c in range(-n_pos, 0):
        here = {r.ids[c] for r in rows if len(r.ids) >= -c}
        out.append(model.tokenizer.decode([here.pop()]) if len(here) == 1 else str(c))
    return tuple(out)


def _ratio(values: np.ndarray, clean: np.ndarray, corrupted: np.ndarray) -> np.ndarray:
    seen = ~np.isnan(values)
    moved = np.where(seen, values - corrupted, 0).sum(-1)
    whole = np.where(seen, clean - corrupted, 0).sum(-1)
    return np.divide(moved, whole, out=np.full(moved.shape, np.nan), where=np.abs(whole) > MIN_CONTRAST)
