"""What the processes of a run tell each other. Every process has to call these at the same time; of a single one they
are the identity."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def add_up(value: float, device: torch.device) -> float:
    """The sum of every process's value, in float64: from sums of squares a variance is taken, and float32 would leave
    nothing of one that is small beside its mean. (MPS has no float64.)"""
    if not several():
        return value
    dtype = torch.float32 if device.type == "mps" else torch.float64
    total = torch.tensor(float(value), dtype=dtype, device=device)
    dist.all_reduce(total)
    return total.item()


def gather(value: Any) -> list:
    """Every process's value, in their order."""
    if not several():
        return [value]
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts


def merge(mapping: dict) -> dict:
    """The union of every process's dict."""
    return {k: v for part in gather(mapping) for k, v in part.items()}
