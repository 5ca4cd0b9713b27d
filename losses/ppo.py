"""Proximal policy optimisation: a clipped policy loss and a clipped value loss, per token.

    ρ_t = π_θ(o_t) / π_old(o_t)
    L_policy = −Σ w_t · min( ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t )
    L_value  =  Σ w_t · ½ · max( (V_t − R_t)², (clip(V_t, V_old,t − ε, V_old,t + ε) − R_t)² )

Source: Schulman et al. 2017, arXiv 1707.06347, eq. 7 (policy); the clipped value loss is not in the paper but in its code
(OpenAI baselines, ppo2), and everybody's since. Advantages A and returns R come from generalised advantage estimation
(losses/advantages.py). Kept: both. Changed: weights in place of the mean, and the ½ of the value loss said aloud.

Beside GRPO (losses/grpo.py): the same clipped ratio, but the baseline is a learned value of every *token*, not the mean of a
group of answers; so A_t differs along an answer, one answer per prompt suffices, and a second network must be trained.
The maximum in the value loss is pessimistic: clipping can only hold a value back, never hide its error.

>>> import torch
>>> old = torch.tensor([[-1.0, -1.0]])
>>> policy = old + torch.log(torch.tensor([[1.3, 0.9]]))                                  # ρ = 1.3 and 0.9
>>> loss, metrics = ppo_policy_loss(policy, old, torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 0.5]]))
>>> round(loss.item(), 6)                    # −½ · min(1.3, 1.2) − ½ · min(−1.8, −1.8) = −0.6 + 0.9
0.3
>>> value, metrics = ppo_value_loss(torch.tensor([[0.5, 0.1]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[0.5, 0.5]]))
>>> round(value.item(), 6)                   # ½ · ½ · max(0.25, (0.2 − 1)²) + ½ · ½ · 0.81 = 0.16 + 0.2025
0.3625
"""

import torch
from torch import Tensor

from losses.logprobs import at_least_float32


def ppo_policy_loss(
    policy_logps: Tensor, old_logps: Tensor, advantages: Tensor, weights: Tensor, *, clip_eps: float = 0.2
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Four [B, T], log-probs at the temperature of the rollout -> (loss [], metrics).

    weights: losses.weights.token_weights, exactly 0 where inactive. Old log-probs and advantages carry no gradient.
    metrics, (sum, count) over active tokens: clip_fraction, ratio.
    """
    given = (policy_logps, old_logps, advantages, weights)
    assert all(x.ndim == 2 and x.shape == policy_logps.shape for x in given), (
        f"policy_logps, old_logps, advantages, weights all [B, T], got {[list(x.shape) for x in given]}"
    )
    if not 0 <= clip_eps <= 1:
        raise ValueError(f"clip_eps must lie in 0 … 1, got {clip_eps}")
    weights = weights.detach()
    active = weights != 0
    policy_logps, old_logps, advantages = (
        torch.where(active, at_least_float32(x), 0.0) for x in (policy_logps, old_logps.detach(), advantages.detach())
    )

    ratio = torch.exp(policy_logps - old_logps)  # ρ [B, T]
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps)
    free, limited = ratio * advantages, clipped * advantages
    per_token = -torch.minimum(free, limited)
    loss = (weights * per_token).sum()

    count = active.sum()
    bites = limited < free  # the clip changes the value: no gradient there
    return loss, {
        "clip_fraction": (bites.sum().float(), count),
        "ratio": (torch.where(active, ratio, 0.0).detach().sum(), count),
    }


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor, *, clip_eps: float | None = 0.2
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Four [B, T] -> (loss [], metrics). old_values: what the critic said when the rollout was scored. clip_eps None: no clip.

    metrics, (sum, count) over active tokens: value_clip_fraction, value (the mean prediction), return.
    """
    given = (values, old_values, returns, weights)
    assert all(x.ndim == 2 and x.shape == values.shape for x in given), (
        f"values, old_values, returns, weights all [B, T], got {[list(x.shape) for x in given]}"
    )
    if clip_eps is not None and clip_eps < 0:
        raise ValueError(f"clip_eps must not be negative, got {clip_eps}")
    weights = weights.detach()
    active = weights != 0
    values, old_values, returns = (
        torch.where(active, at_least_float32(x), 0.0) for x in (values, old_values.detach(), returns.detach())
    )

    error = (values - returns).square()
    held_back = error
    if clip_eps is not None:
        held_back = (torch.clamp(values, old_values - clip_eps, old_values + clip_eps) - returns).square()
    per_token = 0.5 * torch.maximum(error, held_back)
    loss = (weights * per_token).sum()

    count = active.sum()
    return loss, {
        "value_clip_fraction": ((held_back > error).sum().float(), count),
        "value": (values.detach().sum(), count),
        "return": (returns.sum(), count),
    }


def walk_through() -> None:
    """The docstring's example in plain Python floats: two tokens, then two values."""
    import math

    from losses.walk import agree, show

    ratios, advantages, eps, weight = [1.3, 0.9], [1.0, -2.0], 0.2, 0.5
    print("two tokens: ρ = 1.3 with A = 1, ρ = 0.9 with A = −2; ε = 0.2, w = ½ each\n")
    free = [r * a for r, a in zip(ratios, advantages, strict=True)]
    clipped = [min(max(r, 1 - eps), 1 + eps) * a for r, a in zip(ratios, advantages, strict=True)]
    worse = [min(x, y) for x, y in zip(free, clipped, strict=True)]
    show("ρ A", "ratio times advantage", free)
    show("clip(ρ) A", "the ratio held within 1 ± ε", clipped)
    show("min", "the worse of the two", worse)
    show("policy loss", "−Σ w min", -sum(weight * x for x in worse))
    old = torch.tensor([[-1.0, -1.0]])
    policy = old + torch.tensor([[math.log(r) for r in ratios]])
    weights = torch.full((1, 2), weight)
    agree(-sum(weight * x for x in worse), ppo_policy_loss(policy, old, torch.tensor([advantages]), weights)[0].item())

    values, old_values, returns = [0.5, 0.1], [0.0, 0.0], [1.0, 1.0]
    print("\ntwo values: V = 0.5 and 0.1, both were 0 at the rollout, both returns 1\n")
    error = [(v - r) ** 2 for v, r in zip(values, returns, strict=True)]
    held = [(min(max(v, o - eps), o + eps) - r) ** 2 for v, o, r in zip(values, old_values, returns, strict=True)]
    loss = sum(weight * 0.5 * max(a, b) for a, b in zip(error, held, strict=True))
    show("error", "(V − R)²", error)
    show("held back", "(clip(V, V_old ± ε) − R)²", held)
    show("value loss", "Σ w ½ max", loss)
    tensors = [torch.tensor([x]) for x in (values, old_values, returns)]
    agree(loss, ppo_value_loss(*tensors, weights)[0].item())


if __name__ == "__main__":
    walk_through()
