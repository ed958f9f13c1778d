"""The exact sweep: a metric at the decision position under every one of many interventions.

Exact means what a full forward pass with a hook would give, to rounding. It is cheap because nothing is run that an
edit cannot change: blocks below the edited one (their output is stored), positions before the edited one (their keys
and values are stored), the unembedding of columns that the metric does not read. Many edits share each matrix product.
`by_hooks` gives the same numbers the plain way, one forward pass per intervention: the reference, and the fallback for
models that cannot be replayed.

The estimand is part of the result: an effect at the decision position and an effect at all positions differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssah_lens.chat.batch import Batch, Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.precision import has_bfloat16
from ssah_lens.errors import BadInput
from ssah_lens.intervene.metric import Metric
from ssah_lens.intervene.moments import Moments
from ssah_lens.intervene.replay import Replay
from ssah_lens.intervene.sites import Site
from ssah_lens.progress import progress
from ssah_lens.units import Kind

CHUNK_TOKENS = 2048
"""Edited positions per matrix product: enough for full speed, little enough to stay near the processor's caches."""
HEAD_ROWS = 512
"""Rows of logits made at a time when the metric reads the whole vocabulary."""
MODES = ("zero", "mean", "resample", "patch")


@dataclass(frozen=True)
class Edits:
    """Interventions at one site of one layer, each on one unit.

    Attributes:
        site: where.
        layer: which block.
        units: neuron or head of each intervention; zeros for sites that are one vector.
        window: True = this position is edited, counted from the end (the last column is the decision position); None
            edits the positions that `sweep` was asked for.
    """

    site: Site
    layer: int
    units: Int[np.ndarray, " edit"]
    window: Bool[np.ndarray, "edit pos"] | None = None

    def __len__(self) -> int:
        return len(self.units)


@dataclass(frozen=True)
class Swept:
    """The metric under every intervention.

    Attributes:
        edits: the interventions, in order.
        values: [edit, prompt].
        clean: of the undamaged model, [prompt].
        estimand: what was replaced by what, and at which positions.
        metric: name of the metric.
        engine: 'replay' or 'loop'.
    """

    edits: tuple[Edits, ...]
    values: Float[np.ndarray, "edit prompt"]
    clean: Float[np.ndarray, " prompt"]
    estimand: str
    metric: str
    engine: str

    @property
    def effect(self) -> Float[np.ndarray, "edit prompt"]:
        """Change of the metric by each intervention."""
        return self.values - self.clean


@dataclass(frozen=True)
class Fill:
    """What takes the place of an activation.

    Attributes:
        mode: 'zero'; 'mean' of the position class; 'resample', the same unit on the next prompt of the batch; 'patch',
            the same unit in `source` (rows aligned at their ends).
        moments: the means, for 'mean'.
        source: one row per prompt, for 'patch'.
    """

    mode: str = "mean"
    moments: Moments | None = None
    source: Sequence[Row] | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise BadInput(f"no ablation mode '{self.mode}': allowed are {', '.join(MODES)}")
        if self.mode == "mean" and self.moments is None:
            raise BadInput("mean ablation needs activation moments; collect them, or use mode 'zero'")
        if self.mode == "patch" and self.source is None:
            raise BadInput("patching needs the rows to patch from")


def all_units(
    model: ChatModel, kinds: Sequence[Kind] | None = None, layers: Sequence[int] | None = None
) -> list[Edits]:
    """One intervention for every unit, in the order of kinds, layers and indices; all kinds and layers by default."""
    kinds = model.grid.kinds if kinds is None else kinds
    layers = range(model.grid.n_layers) if layers is None else layers
    outside = [i for i in layers if not 0 <= i < model.grid.n_layers]
    if outside:
        raise BadInput(f"no layer {outside[0]}: the model has layers 0-{model.grid.n_layers - 1}")
    return [Edits(Site.of(k), i, np.arange(model.grid.width(k))) for k in kinds for i in layers]


def sweep(
    model: ChatModel,
    rows: Sequence[Row],
    metric: Metric,
    edits: Sequence[Edits],
    fill: Fill,
    last: int | None = 1,
    engine: str = "replay",
    bfloat16: bool = False,
    store: Path | None = None,
    what: str = "sweeping units",
) -> Swept:
    """The metric at the end of every row under every intervention.

    Args:
        model: the undamaged model.
        rows: prompts of any length; the metric is read at their last position.
        metric: what to read.
        edits: the interventions.
        fill: what replaces an activation.
        last: positions that are edited, counted from the end (1: the decision position); None for all.
        engine: 'replay' (exact and fast) or 'loop' (one forward pass per intervention).
        bfloat16: matrix products in bfloat16; state the error with `agreement` of a sample.
        store: .npy file that finished chunks are kept in; the same call resumes there.
        what: label of the progress bar.

    Raises:
        BadInput: a unit or layer outside the model, a metric that is not finite, a store of another sweep.
    """
    _check(model, rows, edits, last, engine)
    starts = np.cumsum([0, *(len(e) for e in edits)])
    clean = np.full(len(rows), np.nan)
    with _Store.open(store, (int(starts[-1]), len(rows)), _key(model, rows, metric, edits, fill, last)) as values:
        # A resampled activation comes from the next prompt of the batch.
        batches = model.batches(rows, share_prefix=False, divisible=fill.mode != "resample")
        run = _Replayed if engine == "replay" else _Looped
        bar = _Bar(sum(_cost(model, e, batch, last) for _, batch in batches for e in edits), what)
        for chosen, batch in batches:
            # What was found before memory ran out stays: the halves of a batch begin where it ended.
            with batches.room():
                source = None if fill.source is None else model.pad([fill.source[i] for i in chosen])
                runner = run(model, batch, metric, fill, source, last, bfloat16, chosen)
                clean[chosen] = runner.clean
                for i in _hardest_first(edits):
                    todo = np.flatnonzero(np.isnan(values[starts[i] : starts[i + 1], chosen]).any(1))
                    bar.skip(_cost(model, edits[i], batch, last) * (1 - len(todo) / max(len(edits[i]), 1)))
                    for part, found in runner.values(edits[i], todo):
                        if not np.isfinite(found).all():
                            raise BadInput(
                                f"the metric '{metric.name}' is not finite at {edits[i].site} of layer {edits[i].layer}"
                            )
                        values[np.ix_(starts[i] + part, chosen)] = found
                        bar.skip(_cost(model, edits[i], batch, last) * len(part) / len(edits[i]))
        bar.close()
        return Swept(tuple(edits), np.array(values), clean, estimand(fill, last), metric.name, engine)


def estimand(fill: Fill, last: int | None) -> str:
    """In words: what was replaced, and where."""
    where = {None: "all positions", 1: "the decision position"}.get(last, f"the last {last} positions")
    how = {"zero": "zero", "mean": "the mean of its position class", "resample": "its value on another prompt"}
    return f"{how.get(fill.mode, 'its value in the other run')} at {where}"


# ---- what takes an activation's place


def replacement(
    model: ChatModel, fill: Fill, batch: Batch, source: Batch | None, site: Site, layer: int, n_pos: int
) -> Float[Tensor, "batch pos channel"]:
    """What a whole site of a layer would be replaced by, at the last positions of every row.

    Args:
        model: the model.
        fill: how to replace.
        batch: the rows that are edited.
        source: the rows whose activations are put in, for 'patch'.
        site, layer: where.
        n_pos: positions, from the end.
    """
    if fill.mode == "zero":
        return torch.zeros(len(batch.ids), n_pos, site.width(model.anatomy), device=model.device)
    if fill.mode == "mean":
        return _means(model, fill.moments, site, layer)[batch.positions[:, -n_pos:]]
    given = _activation(model, source if fill.mode == "patch" else batch, site, layer)[:, -n_pos:]
    return given.roll(1, 0) if fill.mode == "resample" else given


def _means(model: ChatModel, moments: Moments, site: Site, layer: int) -> Float[Tensor, "position channel"]:
    if site not in (Site.NEURON, Site.HEAD):
        raise BadInput(f"means are kept for neurons and heads, not for site '{site}'; use zero, resample or patch")
    kind = Kind.MLP if site is Site.NEURON else Kind.HEAD
    return moments.means(kind)[layer].to(model.device, torch.float32)


@torch.inference_mode()
def _activation(model: ChatModel, batch: Batch, site: Site, layer: int) -> Float[Tensor, "batch pos channel"]:
    """A site's activation in a clean run."""
    found: list[Tensor] = []
    with model.bridge.hooks(fwd_hooks=[(site.hook(layer), lambda x, hook: found.append(x.flatten(2).clone()))]):
        model.logits(batch)
    return found[0]


# ---- running


class _Runner:
    """One batch of prompts; subclasses know how to run edits."""

    def __init__(
        self,
        model: ChatModel,
        batch: Batch,
        metric: Metric,
        fill: Fill,
        source: Batch | None,
        last: int | None,
        bfloat16: bool,
        prompts: Sequence[int],
    ) -> None:
        self.model, self.batch, self.metric, self.fill = model, batch, metric, fill
        self.prompts = torch.tensor(prompts, device=model.device)
        self.n_rows, self.n_pos = batch.ids.shape
        self.last = self.n_pos if last is None else min(last, self.n_pos)
        self.source = source if source is not None else batch if fill.mode == "resample" else None
        if self.source is not None and self.source.ids.shape[1] < self.last:
            raise BadInput("the rows to patch from are shorter than the positions to patch; give token-aligned pairs")
        self.low = bfloat16 and has_bfloat16(model.device)
        self._given: dict[tuple[Site, int], Tensor] = {}

    def window(self, edits: Edits, part: np.ndarray) -> Bool[Tensor, "edit pos"]:
        """Which of the last positions each edit of the part touches; as many columns as the widest needs."""
        if edits.window is None:
            return torch.ones(len(part), self.last, dtype=torch.bool, device=self.model.device)
        window = edits.window[part][:, -self.n_pos :]
        first = int(np.flatnonzero(window.any(0)).min(initial=window.shape[1] - 1))
        return torch.as_tensor(window[:, first:], device=self.model.device)

    def replacement(self, site: Site, layer: int, n_pos: int) -> Float[Tensor, "batch pos channel"]:
        """What the whole site would be replaced by; activations of the other run are kept for one layer."""
        if self.source is None:
            return replacement(self.model, self.fill, self.batch, None, site, layer, n_pos)
        if (site, layer) not in self._given:
            whole = replacement(self.model, self.fill, self.batch, self.source, site, layer, self.source.ids.shape[1])
            self._given = {(site, layer): whole}
        return self._given[site, layer][:, -n_pos:]


class _Replayed(_Runner):
    """Runs edits from stored states, many at once."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.replay = Replay.record(self.model, self.batch)
        self.clean = self.metric.of(self.replay.logits, self.prompts).double().cpu().numpy()

    @torch.inference_mode()
    def values(self, edits: Edits, todo: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if edits.window is not None:  # neighbours in position share a chunk, so that few positions run in vain
            todo = todo[np.argsort([_reach(edits.window[e]) for e in todo], kind="stable")]
        at = 0
        while at < len(todo):
            reach = self.last if edits.window is None else min(_reach(edits.window[todo[at]]), self.n_pos)
            size = max(1, int(CHUNK_TOKENS * self.model.room.share) // (self.n_rows * reach))
            part = todo[at : at + size]
            at += size
            yield part, self._chunk(edits, part)

    def _chunk(self, edits: Edits, part: np.ndarray) -> np.ndarray:
        window = self.window(edits, part)
        n_edits, n_pos = window.shape
        put = self.replacement(edits.site, edits.layer, n_pos)
        replace = _replacer(self.model, edits.site, edits.units[part], window, put)
        hidden = self.replay.resid[edits.layer][:, None, -n_pos:].expand(-1, n_edits, -1, -1)
        device = self.model.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.low):
            if edits.site is Site.RESID:
                final = self.replay.run(edits.layer, replace(hidden))
            else:
                with _hooked(self.model, edits.site, edits.layer, lambda x: replace(x.view(*hidden.shape[:3], -1))):
                    final = self.replay.run(edits.layer, hidden)
            return self._read(final[:, :, -1])

    def _read(self, final: Float[Tensor, "batch edit d_model"]) -> np.ndarray:
        flat = final.flatten(0, 1)
        prompts = self.prompts.repeat_interleave(final.shape[1])
        step = HEAD_ROWS if self.metric.columns is None else len(flat)
        out = [
            self.metric.of_columns(self.replay.logits_of(x[:, None], self.metric.columns)[:, 0], which)
            for x, which in zip(flat.split(step), prompts.split(step), strict=True)
        ]
        return torch.cat(out).double().view(final.shape[:2]).T.cpu().numpy()


class _Looped(_Runner):
    """Runs one forward pass with a TransformerLens hook per edit."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        with torch.inference_mode():
            self.clean = self.metric.of(self.model.logits(self.batch)[:, -1], self.prompts).double().cpu().numpy()

    @torch.inference_mode()
    def values(self, edits: Edits, todo: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for e in todo:
            part = np.array([e])
            window = self.window(edits, part)
            put = self.replacement(edits.site, edits.layer, window.shape[1])
            replace = _replacer(self.model, edits.site, edits.units[part], window, put)

            def hook(x: Tensor, hook, replace=replace, n_pos=window.shape[1]) -> Tensor:
                flat = x.flatten(2)
                end = replace(flat[:, None, -n_pos:])[:, 0]
                return torch.cat([flat[:, :-n_pos], end], 1).view_as(x)

            device = self.model.device.type
            with (
                torch.autocast(device, torch.bfloat16, enabled=self.low),
                self.model.bridge.hooks(fwd_hooks=[(edits.site.hook(edits.layer), hook)]),
            ):
                logits = self.model.logits(self.batch)[:, -1]
            yield part, self.metric.of(logits, self.prompts).double().cpu().numpy()[None]


def _replacer(
    model: ChatModel,
    site: Site,
    units: np.ndarray,
    window: Bool[Tensor, "edit pos"],
    put: Float[Tensor, "batch pos channel"],
) -> Callable[[Float[Tensor, "batch edit pos channel"]], Float[Tensor, "batch edit pos channel"]]:
    """Puts each edit's unit's channels in place, at that edit's positions."""
    width = site.width(model.anatomy) // site.units(model.anatomy)
    starts = torch.as_tensor(units, device=put.device, dtype=torch.long) * width
    channels = starts[:, None] + torch.arange(width, device=put.device)  # [edit, width]
    new = put[:, :, channels].transpose(1, 2)  # [batch, edit, pos, width]
    index = channels[None, :, None].expand_as(new)

    def replace(x: Tensor) -> Tensor:
        wanted = new.to(x.dtype)
        if not window.all():
            wanted = torch.where(window[None, :, :, None], wanted, x.gather(3, index))
        return x.scatter(3, index, wanted)

    return replace


class _hooked:
    """A torch hook on the plain module that owns a site, for the length of a with block."""

    def __init__(self, model: ChatModel, site: Site, layer: int, replace: Callable[[Tensor], Tensor]) -> None:
        self.module, self.site, self.replace = site.owner(model.anatomy.blocks[layer]), site, replace

    def __enter__(self) -> None:
        if self.site.is_input:
            self.handle = self.module.register_forward_pre_hook(
                lambda m, args: (self.replace(args[0]).view_as(args[0]), *args[1:])
            )
        else:
            self.handle = self.module.register_forward_hook(lambda m, args, out: self.replace(out).view_as(out))

    def __exit__(self, *_) -> None:
        self.handle.remove()


# ---- planning


def _reach(window: Bool[np.ndarray, " pos"]) -> int:
    """Positions from the end that must be run for an edit of this window."""
    return len(window) - int(np.flatnonzero(window)[0]) if window.any() else 1


def _hardest_first(edits: Sequence[Edits]) -> list[int]:
    """Low layers first: they take longest, so the time estimate errs on the safe side."""
    return sorted(range(len(edits)), key=lambda i: edits[i].layer)


def _cost(model: ChatModel, edits: Edits, batch: Batch, last: int | None) -> float:
    """Blocks times positions, for the progress bar."""
    n_rows, n_pos = batch.ids.shape
    blocks = model.grid.n_layers - edits.layer
    if edits.window is not None:
        return n_rows * blocks * float(sum(min(_reach(w), n_pos) for w in edits.window))
    return n_rows * blocks * len(edits) * (n_pos if last is None else last)


class _Bar:
    """A progress bar in units of work."""

    def __init__(self, total: float, what: str) -> None:
        self.bar = progress(None, what, total=max(1, round(total)), bar_format="{l_bar}{bar}| {elapsed}<{remaining}")
        self.done = 0.0

    def skip(self, work: float) -> None:
        before = round(self.done)
        self.done += work
        self.bar.update(round(self.done) - before)

    def close(self) -> None:
        self.bar.close()


def _check(model: ChatModel, rows: Sequence[Row], edits: Sequence[Edits], last: int | None, engine: str) -> None:
    if engine not in ("replay", "loop"):
        raise BadInput(f"no engine '{engine}': allowed are replay, loop")
    if not rows or not edits:
        raise BadInput("a sweep needs at least one prompt and one intervention")
    if last is not None and last < 1:
        raise BadInput(f"last is {last}: allowed are 1 or more, or None for all positions")
    for e in edits:
        if e.site is Site.NEURON:
            model.anatomy.check_neurons()
        if not 0 <= e.layer < model.grid.n_layers:
            raise BadInput(f"no layer {e.layer}: the model has layers 0-{model.grid.n_layers - 1}")
        n = e.site.units(model.anatomy)
        if len(e) and (e.units.min() < 0 or e.units.max() >= n):
            raise BadInput(f"no {e.site} {int(e.units.max())} in layer {e.layer}: there are 0-{n - 1}")


# ---- keeping what is done


def _key(model, rows, metric, edits, fill, last) -> str:
    """Tells one sweep from another."""
    digest = hashlib.sha256()
    source = None if fill.source is None else [r.ids for r in fill.source]
    digest.update(json.dumps([model.name, [r.ids for r in rows], metric.name, fill.mode, last, source]).encode())
    for e in edits:
        digest.update(f"{e.site}{e.layer}".encode() + e.units.astype(np.int64).tobytes())
        digest.update(b"" if e.window is None else np.packbits(e.window).tobytes())
    some = next(iter(model.anatomy.parameters))
    digest.update(some.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


class _Store:
    """Values in memory, or in a file that a killed sweep resumes from."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @classmethod
    def open(cls, path: Path | None, shape: tuple[int, int], key: str) -> _Store:
        if path is None:
            return cls(np.full(shape, np.nan))
        name = path.with_suffix(".json")
        if path.is_file() and name.is_file():
            if json.loads(name.read_text(encoding="utf-8")).get("key") != key:
                raise BadInput(f"'{path}' holds another sweep; choose another file or remove it")
            return cls(np.load(path, mmap_mode="r+"))
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=shape)
        values[:] = np.nan
        values.flush()
        name.write_text(json.dumps({"key": key}), encoding="utf-8")
        return cls(values)

    def __enter__(self) -> np.ndarray:
        return self.values

    def __exit__(self, *_) -> None:
        if isinstance(self.values, np.memmap):
            self.values.flush()
