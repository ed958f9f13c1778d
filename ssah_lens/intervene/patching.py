"""Activation patching over token-aligned pairs: which activation, moved from one run to the other, moves the choice?

Denoising runs the corrupted prompt and puts in activations of the clean one; noising the other way round. Both are
normalised alike: 0 is the corrupted prompt's metric, 1 the clean one's (Heimersheim and Nanda 2024, arXiv 2404.15255).
All cells go through the exact sweep. Before the first token in which a pair differs the two runs are the same, so
patching there changes nothing: those cells are known and not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.metric import Metric
from ssah_lens.intervene.sites import Site
from ssah_lens.intervene.sweep import Edits, Fill, sweep
from ssah_lens.stats import CONFIDENCE, N_RESAMPLES

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


def activation_patching(
    model: ChatModel,
    clean: Sequence[str],
    corrupted: Sequence[str],
    metric: Metric,
    site: Site,
    by_position: bool | None = None,
    noising: bool = False,
    layers: Sequence[int] | None = None,
    engine: str = "replay",
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
        engine: 'replay' or 'loop'.

    Raises:
        BadInput: pairs that are not token-aligned, or that do not differ in tokens or in the metric.
    """
    if site is Site.NEURON:
        model.anatomy.check_neurons()
    rows = [model.rows(texts) for texts in (clean, corrupted)]
    differ = _aligned(model, *rows)
    by_position = site not in (Site.HEAD, Site.NEURON) if by_position is None else by_position
    layers = list(range(model.grid.n_layers) if layers is None else layers)
    run, source = rows if noising else rows[::-1]
    n_units, n_pos = site.units(model.anatomy), differ.shape[1]
    edits = [_edits(site, layer, n_units, differ, by_position) for layer in layers]
    swept = sweep(model, run, metric, edits, Fill("patch", source=source), None, engine, what=f"patching {site}")
    other = sweep(model, source, metric, [Edits(Site.RESID, model.grid.n_layers - 1, np.zeros(1, int))],
                  Fill("patch", source=source), 1, engine).clean  # fmt: skip
    if abs(np.mean(swept.clean - other)) < MIN_CONTRAST:
        raise BadInput(f"clean and corrupted prompts have the same {metric.name}: there is no difference to explain")
    values = np.broadcast_to(swept.clean, (len(layers), n_units, n_pos if by_position else 1, len(run))).copy()
    at = 0
    for i, e in enumerate(edits):
        for unit, window in zip(e.units, e.window, strict=True):
            values[i, unit, int(np.flatnonzero(window)[0]) if by_position else 0] = swept.values[at]
            at += 1
    axes = ["layer"] + (["unit"] if n_units > 1 else []) + (["pos"] if by_position else [])
    if by_position:
        values = _exact_no_ops(values, swept.clean, differ, run)
    shape = [n for n, keep in zip(values.shape, (True, n_units > 1, by_position, True), strict=True) if keep]
    labels = {"layer": tuple(map(str, layers)), "unit": tuple(map(str, range(n_units))), "pos": _tokens(model, run)}
    return Patched(
        site,
        noising,
        tuple(axes),
        {a: labels[a] for a in axes},
        values.reshape(shape),
        swept.clean if noising else other,
        other if noising else swept.clean,
        metric.name,
        len(layers) * n_units * (n_pos if by_position else 1),
        at,
    )


def _edits(site: Site, layer: int, n_units: int, differ: Bool[np.ndarray, "pair pos"], by_position: bool) -> Edits:
    """Only the cells that can differ: from the first differing token on; below block 0, differing tokens alone."""
    reached = np.logical_or.accumulate(differ, 1).any(0)
    if not by_position:
        return Edits(site, layer, np.arange(n_units), np.broadcast_to(reached, (n_units, len(reached))))
    columns = np.flatnonzero(differ.any(0) if site is Site.RESID and layer == 0 else reached)
    window = np.eye(differ.shape[1], dtype=bool)[columns]
    return Edits(site, layer, np.repeat(np.arange(n_units), len(columns)), np.tile(window, (n_units, 1)))


def _exact_no_ops(values: np.ndarray, base: np.ndarray, differ: np.ndarray, rows: Sequence[Row]) -> np.ndarray:
    """Positions before a pair's own first difference keep its baseline to the bit; those that it lacks are NaN."""
    n_pos = differ.shape[1]
    reached = np.logical_or.accumulate(differ, 1).T  # [pos, pair]
    exists = np.array([[n_pos - len(r.ids) <= c for r in rows] for c in range(n_pos)])
    return np.where(exists, np.where(reached, values, base), np.nan)


def _aligned(model: ChatModel, clean: list[Row], corrupted: list[Row]) -> Bool[np.ndarray, "pair pos"]:
    """True where a pair's tokens differ, columns counted from the end."""
    if len(clean) != len(corrupted) or not clean:
        raise BadInput(f"patching needs pairs: got {len(clean)} clean and {len(corrupted)} corrupted prompts")
    n_pos = max(len(r.ids) for r in clean)
    differ = np.zeros((len(clean), n_pos), dtype=bool)
    for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
        if len(a.ids) != len(b.ids):
            raise BadInput(
                f"pair {i + 1} is not token-aligned: {len(a.ids)} and {len(b.ids)} tokens for {model.name}; "
                "patching needs the same number (ssah_lens.chat.prompts.token_aligned chooses such pairs)"
            )
        differ[i, n_pos - len(a.ids) :] = np.array(a.ids) != np.array(b.ids)
        if not differ[i].any():
            raise BadInput(f"pair {i + 1}: both prompts are the same tokens")
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
