"""Clipped importance sampling policy optimisation: REINFORCE on old samples, each weighed by its ratio up to a bound.

    L = −Σ w_t · sg( min(ρ_t, 1 + ε_high) ) · A · log π_θ(o_t),        ρ_t = π_θ(o_t) / π_old(o_t),   sg: no gradient

Source: MiniMax 2025 (MiniMax-M1), arXiv 2506.13585, eq. 4; as the loss of a scaling study, Khatri et al. 2025
(ScaleRL), arXiv 2510.13786. Kept: the weight is clipped, not the update. Where PPO's and GRPO's min drops a token whose
ratio has left the range, it goes on teaching here, with weight 1 + ε_high: rare tokens that turn an answer ("however",
"wait") are just those that leave it first. No lower bound: a small ratio weighs little by itself. Added: β · KL, as in
losses/grpo.py.

Said aloud, because in some code the key is the bound itself, and in others 1 + the key: here the bound is
1 + clip_high, as in losses/grpo.py. The default 4 is a bound of 5, wide enough for all but a few tokens; with DAPO's
0.28 any ratio above 1.28 counts 1.28.

The *clipped* ratio is what carries no gradient (min(sg(ρ), c) is the same thing). With gradient, min(ρ, c) log π falls
by A ρ (1 + log π): its sign turns at every token less likely than 1/e, the rare ones that this loss is for.
The value of the loss contains log π and says nothing about progress; on policy its gradient is GRPO's, −w A.

>>> import torch
>>> old = torch.tensor([[-1.0, -1.0]])
>>> policy = (old + torch.log(torch.tensor([[1.3, 0.7]]))).requires_grad_()          # ρ = 1.3 and 0.7
>>> loss, metrics = cispo_loss(policy, old, torch.tensor([1.0]), torch.tensor([[0.5, 0.5]]), clip_high=0.28)
>>> loss.backward()
>>> [round(x, 6) for x in policy.grad[0].tolist()]                                   # −½ · 1.28 and −½ · 0.7
[-0.64, -0.35]
>>> round(loss.item(), 6)               # −½ · 1.28 · (log 1.3 − 1) − ½ · 0.7 · (log 0.7 − 1) = 0.472087 + 0.474836
0.946923
"""

import torch
from torch import Tensor

from losses.door import Metrics, refuse_negative, same_shape, what_counts
from losses.grpo import kl_per_token, refuse_other_kl
from losses.kl import kl_metrics
from losses.ppo import surrogate_metrics


def cispo_loss(
    policy_logps: Tensor,  # [B, T] log π_θ, at the temperature of the rollout
    old_logps: Tensor,  # [B, T] log π_old, no gradient
    advantages: Tensor,  # [B] or [B, T] A, no gradient
    weights: Tensor,  # [B, T] w, exactly 0 where inactive (losses/weights.py)
    *,
    clip_high: float = 4.0,  # ε_high: the bound is 1 + clip_high
    ref_logps: Tensor | None = None,  # [B, T] log π_ref, no gradient
    kl_coef: float = 0.0,  # β
    kl_estimator: str = "k3_is",  # as in losses/grpo.py
) -> tuple[Tensor, Metrics]:
    """−sg(min(ρ, 1 + ε_high)) A log π plus β · KL, Σ w over all tokens -> (loss [], metrics).

    metrics, (sum, count) over active tokens: clip_fraction, ratio; with ref_logps also kl (k3) and kl_k1.
    """
    same_shape(
        "B T", {"policy_logps": policy_logps, "old_logps": old_logps, "weights": weights, "ref_logps": ref_logps}
    )
    assert advantages.shape in (policy_logps.shape, policy_logps.shape[:1]), (
        f"advantages [B] or [B, T], got {list(advantages.shape)}"
    )
    refuse_negative("clip_high", clip_high, " (the bound is 1 + clip_high)")
    refuse_other_kl(kl_coef, kl_estimator, ref_logps)
    if advantages.ndim == 1:
        advantages = advantages[:, None].expand_as(policy_logps)
    active, weights, policy_logps, old_logps, advantages = what_counts(
        weights, policy_logps, old_logps, advantages.detach()
    )

    ratio = torch.exp(policy_logps - old_logps).detach()  # ρ [B, T]
    bound = 1 + clip_high
    per_token = -ratio.clamp(max=bound) * advantages * policy_logps
    metrics = surrogate_metrics(ratio, ratio > bound, active)
    if ref_logps is not None:
        ref_logps = what_counts(weights, ref_logps)[2]
        if kl_coef > 0:
            per_token = per_token + kl_coef * kl_per_token(policy_logps, old_logps, ref_logps, kl_estimator)
        metrics |= kl_metrics(policy_logps, ref_logps, active)

    loss = (weights * per_token).sum()
    return loss, metrics


def walk_through() -> None:
    """The docstring's example in plain Python floats: one answer of two tokens."""
    import math

    from losses.walk import agree, show

    ratios, advantage, weight, high = [1.3, 0.7], 1.0, 0.5, 0.28
    print("one answer of two tokens, log π_old = −1: ρ = 1.3 and 0.7, A = 1, ε_high = 0.28; each counts ½\n")
    logps = [-1 + math.log(r) for r in ratios]
    bounded = [min(r, 1 + high) for r in ratios]
    per_token = [-b * advantage * x for b, x in zip(bounded, logps, strict=True)]
    loss = sum(weight * x for x in per_token)
    gradient = [-weight * b * advantage for b in bounded]
    show("ρ", "π_θ / π_old", ratios)
    show("bounded", "min(ρ, 1 + ε_high), no gradient", bounded)
    show("log π", "", logps)
    show("per token", "−bounded · A · log π", per_token)
    show("loss", "Σ w · per token", loss)
    show("gradient", "∂ loss / ∂ log π = −w · bounded · A", gradient)
    policy = torch.tensor([logps], requires_grad=True)
    got, _ = cispo_loss(
        policy, torch.full((1, 2), -1.0), torch.tensor([advantage]), torch.full((1, 2), weight), clip_high=high
    )
    (slope,) = torch.autograd.grad(got, policy)
    agree([loss, *gradient], [got.item(), *slope[0].tolist()])


if __name__ == "__main__":
    walk_through()
