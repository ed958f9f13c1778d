"""Where a model runs, and whether it fits there: asked before the weights are read.

A model lies on one device as a whole. One that is larger is refused with the sizes: nothing here is tested with weights
on several devices, and an offloaded weight cannot be scored, ablated or frozen.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ssah_lens.errors import BadInput

if TYPE_CHECKING:
    from ssah_lens.chat.weights import Source

DEVICES = "cpu, cuda, cuda:0, mps, or auto for the best of these"


def check_device(name: str) -> torch.device:
    """The device of this name; 'auto' is cuda, else mps, else cpu.

    Raises:
        BadInput: no such device, or not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"device '{name}' cannot be used: allowed are {DEVICES}; try --device cpu") from None
    why = {
        "cpu": lambda: "",
        "cuda": lambda: _cuda(device.index or 0),
        "mps": lambda: "" if torch.backends.mps.is_available() else "this torch finds no Apple GPU",
    }.get(device.type, lambda: f"allowed are {DEVICES}")()
    if why:
        raise BadInput(f"device '{name}' cannot be used: {why}; try --device cpu")
    return device


def _cuda(index: int) -> str:
    if not torch.cuda.is_available():
        return "this torch finds no NVIDIA GPU"
    n = torch.cuda.device_count()
    return "" if index < n else f"there are {n} GPUs, cuda:0 to cuda:{n - 1}"


def check_room(source: Source, dtype: torch.dtype, device: torch.device) -> None:
    """Refuses weights that the device cannot hold, as far as that can be known before they are read.

    Raises:
        BadInput: with what they need, what is free, and what to do.
    """
    numbers = 0 if source.path is None or source.gguf_file else count_weights(source.path)
    need, free = numbers * dtype.itemsize, free_memory(device)
    if free is None or need <= free:
        return
    smaller = numbers * torch.bfloat16.itemsize
    advice = f"take --dtype bfloat16 ({smaller / 1e9:.1f} GB), or " if need > smaller and smaller <= free else "take "
    raise BadInput(
        f"{source.name} needs {need / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')}, {device} has "
        f"{free / 1e9:.1f} GB free: {advice}a device that holds the whole model (it is not spread over several)"
    )


def count_weights(folder: Path) -> int:
    """Numbers in the headers of a folder's safetensors files; none of a damaged one, which whoever reads it refuses."""
    import math

    from safetensors import SafetensorError, safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def free_memory(device: torch.device) -> int | None:
    """Bytes; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        return None
