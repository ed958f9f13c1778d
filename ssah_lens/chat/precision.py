"""Which arithmetic a device does natively."""

from __future__ import annotations

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 matrices natively (otherwise it would be slower, not faster)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    have = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(have.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
