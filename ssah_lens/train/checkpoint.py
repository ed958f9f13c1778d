"""Where a killed training run takes up again: one safetensors file with values, optimizer state and random state.

Written under a temporary name and renamed when whole, so that a kill or a full disk leaves the one before it. It
belongs to one run: other data, settings, start weights or frozen slices are refused, never mixed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ssah_lens.chat.batch import Row
from ssah_lens.errors import BadInput
from ssah_lens.files import write_tensors
from ssah_lens.train.freeze import digest
from ssah_lens.train.trainable import Part

if TYPE_CHECKING:
    from ssah_lens.chat.model import ChatModel

FILE = "checkpoint.safetensors"
PAUSE = 120.0
"""Seconds between two checkpoints that nobody asked for: what a kill may cost, at about a hundredth of the time."""
PER_WEIGHT = 12
"""Bytes of a checkpoint per trained weight: float32 value and two moments."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        losses: one per step done.
        curve: (steps done, what was seen) at the stated cadence.
    """

    losses: list[float] = field(default_factory=list)
    curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    @property
    def step(self) -> int:
        return len(self.losses)


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often.

    Attributes:
        folder: made when it is not there.
        every: steps between two checkpoints.
        seconds: and at least so long; a checkpoint is three times as large as what is trained.
    """

    folder: Path
    every: int = 50
    seconds: float = 0.0

    @classmethod
    def within(cls, folder: Path | None, model: ChatModel) -> Checkpoints | None:
        """Checkpoints every two minutes; none without a folder, or where its disk has no room for two of them."""
        if folder is None:
            return None
        there = next(p for p in (folder, *folder.parents) if p.is_dir())
        need = 2 * PER_WEIGHT * sum(p.numel() for p in model.anatomy.parameters)
        return cls(folder, every=1, seconds=PAUSE) if shutil.disk_usage(there).free > need else None

    @property
    def file(self) -> Path:
        return self.folder / FILE

    def save(self, key: str, parts: Sequence[Part], optimizer: torch.optim.Optimizer, done: Progress) -> None:
        """Replaces the checkpoint.

        Raises:
            BadInput: it cannot be written (full disk, no permission); the one before it stays.
        """
        tensors = {"rng": torch.get_rng_state()}
        if parts[0].tensor.is_cuda:
            tensors["rng.cuda"] = torch.cuda.get_rng_state(parts[0].tensor.device)
        for i, part in enumerate(parts):
            tensors[f"{i}.value"] = part.values.contiguous()
            for name, value in optimizer.state[part.tensor].items():
                if isinstance(value, Tensor):
                    tensors[f"{i}.state.{name}"] = value.contiguous()
        said = {"key": key, "losses": json.dumps(done.losses), "curve": json.dumps(done.curve)}
        kept = "the one before it is kept" if self.file.is_file() else "none was kept"
        write_tensors(self.file, tensors, said, f"make room for the checkpoint of step {done.step}; {kept}")

    def resume(self, key: str, parts: Sequence[Part], optimizer: torch.optim.Optimizer) -> Progress:
        """Puts parts, optimizer and random state back as they were; a run that has no checkpoint yet starts anew.

        Raises:
            BadInput: the checkpoint is damaged or belongs to another run.
        """
        if not self.file.is_file():
            return Progress()
        try:
            with safe_open(self.file, framework="pt", device=str(parts[0].tensor.device)) as f:
                said = f.metadata() or {}
                if said.get("key") != key:
                    raise BadInput(
                        f"'{self.file}' belongs to another run (data, settings, frozen units or weights differ); "
                        "give another folder, or delete it to start anew"
                    )
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
            done = Progress(json.loads(said["losses"]), [(s, seen) for s, seen in json.loads(said["curve"])])
            values = [tensors[f"{i}.value"] for i in range(len(parts))]
        except (OSError, SafetensorError, KeyError, ValueError) as e:
            if isinstance(e, BadInput):
                raise
            raise BadInput(f"'{self.file}' is damaged ({e}); delete it to start anew") from e
        for i, (part, value) in enumerate(zip(parts, values, strict=True)):
            with torch.no_grad():
                part.tensor.copy_(value)
            part.write()
            state = {n.split(".", 2)[2]: t for n, t in tensors.items() if n.startswith(f"{i}.state.")}
            # AdamW counts its steps on the CPU, wherever the weights are.
            optimizer.state[part.tensor] = {n: t.cpu() if n == "step" else t for n, t in state.items()}
        torch.set_rng_state(tensors["rng"].cpu())
        if "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"].cpu(), parts[0].tensor.device)
        return done


def run_key(settings: Any, rows: Sequence[Row], parts: Sequence[Part], frozen: str) -> str:
    """What makes two runs the same: settings, data in their order, start values, frozen bits."""
    out = hashlib.sha256(f"{settings}{frozen}".encode())
    for row in rows:
        out.update(f"{row.ids}{row.positions}".encode())
    out.update(digest(part.values for part in parts).encode())
    return out.hexdigest()
