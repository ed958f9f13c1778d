"""Which arithmetic a device does natively, and what a number format does to the numbers."""

from __future__ import annotations

import torch

BITS = {torch.bfloat16: 8, torch.float16: 11}
"""Significant bits; float32 has 24."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 matrices natively (otherwise it would be slower, not faster)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    have = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(have.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def bfloat16_if_fast(device: torch.device, on: bool = True) -> torch.autocast:
    """A context in which matrix products are made in bfloat16, where that is faster and `on`; else one of no effect."""
    return torch.autocast(device.type, torch.bfloat16, enabled=on and has_bfloat16(device))


def rounding(dtype: torch.dtype) -> list[str]:
    """What a reader must know of numbers that were made in this format; nothing for float32."""
    if dtype not in BITS:
        return []
    name = str(dtype).removeprefix("torch.")
    return [
        f"computed in {name}, which keeps {BITS[dtype]} significant bits: each number is rounded by up to "
        f"{2.0 ** -BITS[dtype]:.1%}, so scores differ from float32's in the third digit or before, and a response "
        "whose first two tokens are nearly as likely may turn out the other way"
    ]
