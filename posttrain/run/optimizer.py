"""The optimiser and its schedule: AdamW, decay on matrices only, a factor of the peak rate per optimiser step."""

from __future__ import annotations

import math

import torch
from torch import nn

from posttrain.errors import UserError


def schedule(step: int, num_steps: int, warmup: int, how: str) -> float:
    """The learning rate's factor for optimiser step 0, 1, …: linear without warm-up is (N − k) / N at step k."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    if how == "wsd":  # a plateau over 30 % of all steps, then straight down to 5 %
        return min(1.0, 0.05 + 0.95 * (num_steps - step) / (0.7 * num_steps))
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[how]


def about_warmup(num_steps: int, warmup: int, rate: float) -> list[str]:
    """A line, where the whole run is warm-up."""
    if warmup < num_steps:
        return []
    most = rate * num_steps / (warmup + 1)
    return [
        f"warning: training.warmup_steps = {warmup:,} of {num_steps:,} step{'s' * (num_steps != 1)}: the learning rate comes to {most:.2g}, not to {rate:.2g}"
    ]


def make_optimizer(
    policy: nn.Module, training, device: torch.device, learning_rates: dict[str, float] | None = None
) -> torch.optim.Optimizer:
    named = [(n, p) for n, p in policy.named_parameters() if p.requires_grad]
    groups = []
    for start, rate in [*(learning_rates or {}).items(), ("", training.learning_rate)]:
        own = [p for n, p in named if n.startswith(start)]
        named = [(n, p) for n, p in named if not n.startswith(start)]
        groups.append({"params": [p for p in own if p.ndim >= 2], "weight_decay": training.weight_decay, "lr": rate})
        decay = training.weight_decay if getattr(training, "decay", "matrices") == "all" else 0.0
        groups.append({"params": [p for p in own if p.ndim < 2], "weight_decay": decay, "lr": rate})
    groups = [
        group for group in reversed(groups) if group["params"]
    ]  # the policy's own rate first: it is what is logged
    if training.optimizer == "adamw":
        betas = tuple(getattr(training, "betas", (0.9, 0.999)))
        return torch.optim.AdamW(groups, lr=training.learning_rate, betas=betas, fused=device.type in ("cpu", "cuda"))
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            "training.optimizer adamw_8bit needs bitsandbytes: pip install bitsandbytes, or use adamw"
        ) from None
    return AdamW8bit(groups, lr=training.learning_rate, betas=tuple(getattr(training, "betas", (0.9, 0.999))))
