"""Values of a sweep in a file: a sweep that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.files import write_whole
from ssah_lens.intervene.fill import Fill
from ssah_lens.intervene.metric import Metric
from ssah_lens.intervene.room import Room
from ssah_lens.units import Kind

if TYPE_CHECKING:
    from ssah_lens.intervene.sweep import Edits

PROBED = 64
"""Values of every parameter that tell one model from another."""


def fingerprint(
    model: ChatModel,
    rows: Sequence[Row],
    metric: Metric,
    edits: Sequence[Edits],
    fill: Fill,
    last: int | None,
    bfloat16: bool,
) -> str:
    """Tells one sweep from another: weights, prompts, metric, edits and what they put in."""
    digest = hashlib.sha256()
    sources = fill.sources(rows, 0)
    source = None if sources is None else [r.ids for r in sources]
    named = [model.name, [r.ids for r in rows], metric.name, fill.mode, last, source, bfloat16]
    digest.update(json.dumps(named).encode())
    for e in edits:
        digest.update(f"{e.site}{e.layer}".encode() + e.units.astype(np.int64).tobytes())
        digest.update(b"" if e.window is None else np.packbits(e.window).tobytes())
    for p in model.plain.parameters():
        flat = p.detach().flatten()
        digest.update(flat[:: max(1, len(flat) // PROBED)].float().cpu().numpy().tobytes())
    if fill.moments is not None:
        for kind in Kind:
            digest.update(fill.moments.means(kind).numpy().tobytes())
        for site in sorted(fill.moments.outputs):
            digest.update(fill.moments.means_at(site).numpy().tobytes())
    # Metrics of one name may read other tokens: what it makes of fixed logits tells them apart.
    vocab = model.plain.get_output_embeddings().weight.shape[0]
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(0)).to(model.device)
    digest.update(metric.of(logits, torch.zeros(1, dtype=torch.long, device=model.device)).cpu().numpy().tobytes())
    return digest.hexdigest()


class Store:
    """Values [edit, prompt], NaN where not measured yet, in memory or in a .npy file with its .json beside it.

    Attributes:
        values: to be written to.
        room: how much runs at a time; a resumed sweep takes that of the first one, to repeat it to the digit.
    """

    def __init__(self, values: np.ndarray, room: Room) -> None:
        self.values, self.room = values, room

    @classmethod
    def open(cls, path: Path | None, shape: tuple[int, int], key: str, room: Room) -> Store:
        """A new store, or the one that is there.

        Raises:
            BadInput: the file holds another sweep, or cannot be used.
        """
        if path is None:
            return cls(np.full(shape, np.nan), room)
        beside = path.with_suffix(".json")
        try:
            if path.is_file() and beside.is_file():
                return cls(*_resume(path, beside, shape, key))
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.unlink(missing_ok=True)  # left of values that are gone, it would take the new ones for another sweep
            values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=shape)
            values[:] = np.nan
            values.flush()
            made = json.dumps({"key": key, **asdict(room)})
            write_whole(beside, lambda partial: partial.write_text(made, encoding="utf-8"), "choose another file")
        except OSError as e:
            raise BadInput(f"'{path}' cannot keep the sweep: {e.strerror}; choose another file") from e
        return cls(values, room)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: Any) -> None:
        if isinstance(self.values, np.memmap):
            self.values.flush()


def _resume(path: Path, beside: Path, shape: tuple[int, int], key: str) -> tuple[np.ndarray, Room]:
    try:
        kept = json.loads(beside.read_text(encoding="utf-8"))
        found, room = kept["key"], Room(kept["batch_tokens"], kept["chunk_tokens"])
        values = np.load(path, mmap_mode="r+")
    except (ValueError, KeyError, TypeError, EOFError) as e:
        raise BadInput(f"'{path}' or '{beside.name}' is damaged; remove both to sweep anew") from e
    if found != key or values.shape != shape:
        raise BadInput(f"'{path}' holds another sweep; choose another file or remove it")
    return values, room
