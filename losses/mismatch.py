"""Importance weights for a sampler that is not the trainer: another engine, another precision, another kernel.

    r_t = π_trainer(o_t) / π_sampler(o_t)          the same weights, computed twice: it should be 1, and is not quite
    truncated       w_t = min(r_t, C)
    masked          w_t = r if low ≤ r ≤ high, else 0
    r of the level  token      r_t
                    sequence   Π_t r_t = exp( Σ_t log r_t )              the ratio of the whole answer
                    geometric  (Π_t r_t)^(1/|y|) = exp( mean_t log r_t )

Sources: truncated: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"; masked,
token by token: Ling team 2025 (Ring-1T, IcePop), arXiv 2510.18855. A policy gradient is an expectation over what was
*sampled*; written with the trainer's log-probs it is that of another policy, and r puts it right. C bounds what one
token can weigh (a bias for less variance); the mask leaves out where the two have nothing to do with each other.

These are constants, no gradient flows through them, and they are none of the ratios of a loss: ρ compares the trainer
with its own earlier self. Multiply the advantages with them. Beware of the two meanings of "sequence": here it is the
*sum* of log-ratios, as the mathematics has it, which leaves any fixed range as answers grow; GSPO's ratio
(losses/gspo.py) is the mean, here called geometric. The default range, 0.5 to 5, is one for tokens.

>>> import torch
>>> sampler, active = torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[True, True, True]])
>>> trainer = sampler + torch.log(torch.tensor([[0.5, 1.0, 3.0]]))
>>> [round(x, 6) for x in truncated_importance_weights(trainer, sampler, active)[0].tolist()]
[0.5, 1.0, 2.0]
>>> [round(x, 6) for x in masked_importance_weights(trainer, sampler, active, low=0.6, high=4.0)[0].tolist()]
[0.0, 1.0, 3.0]
>>> for level in ("sequence", "geometric"):                       # 0.5 · 1 · 3 = 1.5, and its third root
...     [round(x, 6) for x in masked_importance_weights(trainer, sampler, active, level=level)[0].tolist()]
[1.5, 1.5, 1.5]
[1.144714, 1.144714, 1.144714]
"""

import torch
from torch import Tensor

from losses.door import at_least_float32, same_shape


def truncated_importance_weights(
    trainer_logps: Tensor,  # [B, T] of the sampled tokens, as the trainer computes them before any update
    sampler_logps: Tensor,  # [B, T] as the sampler said they were
    active: Tensor,  # [B, T] bool
    *,
    cap: float = 2.0,  # C
) -> Tensor:
    """w [B, T] in 0 … cap, no gradient, 0 where inactive."""
    if cap <= 0:
        raise ValueError(f"cap must be above 0, got {cap}")
    return torch.where(active, _ratio(trainer_logps, sampler_logps, active, "token").clamp(max=cap), 0.0)


def masked_importance_weights(
    trainer_logps: Tensor,  # [B, T]
    sampler_logps: Tensor,  # [B, T]
    active: Tensor,  # [B, T] bool
    *,
    low: float = 0.5,
    high: float = 5.0,
    level: str = "token",  # or "sequence", "geometric": then one value along each answer
) -> Tensor:
    """w [B, T]: the ratio of the level where it lies in low … high (both included), else 0; no gradient, 0 where
    inactive."""
    if not 0 <= low <= high:
        raise ValueError(f"low and high must be a range of ratios, got {low} and {high}")
    ratio = _ratio(trainer_logps, sampler_logps, active, level)
    return torch.where(active & (low <= ratio) & (ratio <= high), ratio, 0.0)


def _ratio(trainer_logps: Tensor, sampler_logps: Tensor, active: Tensor, level: str) -> Tensor:
    """r [B, T] of the level."""
    same_shape("B T", {"trainer_logps": trainer_logps, "sampler_logps": sampler_logps, "active": active})
    assert active.dtype == torch.bool, f"active must be bool, got {active.dtype}"
    if level not in ("token", "sequence", "geometric"):
        raise ValueError(f'level must be "token", "sequence" or "geometric", got {level!r}')
    log_ratio = torch.where(active, at_least_float32(trainer_logps) - at_least_float32(sampler_logps), 0.0).detach()
    if level != "token":
        total = log_ratio.sum(dim=1, keepdim=True)
        tokens = active.sum(dim=1, keepdim=True).clamp(min=1)
        log_ratio = (total if level == "sequence" else total / tokens).expand_as(log_ratio)
    return torch.exp(log_ratio)


def walk_through() -> None:
    """The docstring's example in plain Python floats: one answer of three tokens."""
    import math

    from losses.walk import agree, show

    ratios, cap, low, high = [0.5, 1.0, 3.0], 2.0, 0.6, 4.0
    print("one answer of three tokens, π_trainer / π_sampler = 0.5, 1, 3\n")
    sampler, active = torch.full((1, 3), -1.0), torch.ones(1, 3, dtype=torch.bool)
    trainer = sampler + torch.tensor([[math.log(r) for r in ratios]])
    truncated = [min(r, cap) for r in ratios]
    masked = [r if low <= r <= high else 0.0 for r in ratios]
    show("truncated", "min(r, C = 2)", truncated)
    agree(truncated, truncated_importance_weights(trainer, sampler, active)[0].tolist())
    show("masked", "r where 0.6 ≤ r ≤ 4, else 0", masked)
    agree(masked, masked_importance_weights(trainer, sampler, active, low=low, high=high)[0].tolist())
    product = ratios[0] * ratios[1] * ratios[2]
    for level, ratio in (("sequence", product), ("geometric", product ** (1 / 3))):
        show(level, "the product" if level == "sequence" else "its third root", [ratio] * 3)
        agree([ratio] * 3, masked_importance_weights(trainer, sampler, active, level=level)[0].tolist())


if __name__ == "__main__":
    walk_through()
