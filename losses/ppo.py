"""Proximal policy optimisation: a clipped policy loss and a clipped value loss, per token.

    ρ_t = π_θ(o_t) / π_old(o_t)
    L_policy = −Σ w_t · min( ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t )        + β Σ w_t · KL_t, if it is paid in the loss
    L_value  =  Σ w_t · ½ · max( (V_t − R_t)², (clip(V_t, V_old,t − ε, V_old,t + ε) − R_t)² )

Source: Schulman et al. 2017, arXiv 1707.06347, eq. 7 (policy); the clipped value loss is not in the paper but in its
code (OpenAI baselines, ppo2), and everybody's since. Advantages A and returns R come from generalised advantage
estimation (losses/gae.py). Kept: both. Changed: weights in place of the mean, and the ½ of the value loss written out.

Beside GRPO (losses/grpo.py): the same clipped ratio, but the baseline is a learned value of every *token*, not the mean
of a group of answers; so A_t differs along an answer, one answer per prompt suffices, and a second network must be
trained. The maximum in the value loss is pessimistic: clipping can only hold a value back, never hide its error.

The KL is paid in the reward (losses/gae.py: a token is charged for what follows it, the KL of the whole answer), or
here, in the loss: each token's own KL at the state where it was sampled. These are two gradients (losses/kl.py).

>>> import torch
>>> old = torch.tensor([[-1.0, -1.0]])
>>> policy = old + torch.log(torch.tensor([[1.3, 0.9]]))                                  # ρ = 1.3 and 0.9
>>> loss, metrics = ppo_policy_loss(policy, old, torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 0.5]]))
>>> round(loss.item(), 6)                    # −½ · min(1.3, 1.2) − ½ · min(−1.8, −1.8) = −0.6 + 0.9
0.3
>>> values, old, returns = torch.tensor([[0.5, 0.1]]), torch.zeros(1, 2), torch.ones(1, 2)
>>> value, metrics = ppo_value_loss(values, old, returns, torch.tensor([[0.5, 0.5]]))
>>> round(value.item(), 6)                   # ½ · ½ · max(0.25, (0.2 − 1)²) + ½ · ½ · 0.81 = 0.16 + 0.2025
0.3625
"""

import torch
from torch import Tensor

from losses.door import Metrics, refuse_negative, same_shape, what_counts
from losses.kl import k3_is, kl_metrics


def clipped_surrogate(
    ratio: Tensor,  # [B, T] ρ
    advantages: Tensor,  # [B, T] A
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, Tensor]:
    """−min(ρ A, clip(ρ, 1 − low, 1 + high) A) per token, and where the clip changes it (no gradient flows there): two
    [B, T]."""
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    is_clipped = clipped < unclipped
    return -torch.minimum(unclipped, clipped), is_clipped


def ppo_policy_loss(
    policy_logps: Tensor,  # [B, T] log π_θ, at the temperature of the rollout
    old_logps: Tensor,  # [B, T] log π_old, no gradient
    advantages: Tensor,  # [B, T] A, no gradient
    weights: Tensor,  # [B, T] w, exactly 0 where inactive (losses/weights.py)
    *,
    clip_eps: float = 0.2,
    ref_logps: Tensor | None = None,  # [B, T] log π_ref, for the KL metrics and the KL term
    kl_coef: float = 0.0,  # β, times each token's own k3_is (losses/kl.py); 0 where the KL is paid in the reward
) -> tuple[Tensor, Metrics]:
    """The clipped surrogate (and the KL, if it is paid here), Σ w over all tokens -> (loss [], metrics).

    metrics, (sum, count) over active tokens: clip_fraction, ratio; with ref_logps also kl (k3) and kl_k1.
    """
    same_shape(
        "B T",
        {
            "policy_logps": policy_logps,
            "old_logps": old_logps,
            "advantages": advantages,
            "weights": weights,
            "ref_logps": ref_logps,
        },
    )
    if not 0 <= clip_eps <= 1:
        raise ValueError(f"clip_eps must lie in 0 … 1, got {clip_eps}")
    refuse_kl_without_reference(kl_coef, ref_logps)
    active, weights, policy_logps, old_logps, advantages = what_counts(
        weights, policy_logps, old_logps.detach(), advantages.detach()
    )

    ratio = torch.exp(policy_logps - old_logps)  # ρ [B, T]
    per_token, is_clipped = clipped_surrogate(ratio, advantages, clip_eps, clip_eps)
    metrics = surrogate_metrics(ratio, is_clipped, active)
    if ref_logps is not None:
        ref_logps = what_counts(weights, ref_logps)[2]
        if kl_coef > 0:
            per_token = per_token + kl_coef * k3_is(policy_logps, ref_logps, old_logps)
        metrics |= kl_metrics(policy_logps, ref_logps, active)

    loss = (weights * per_token).sum()
    return loss, metrics


def surrogate_metrics(ratio: Tensor, is_clipped: Tensor, active: Tensor) -> Metrics:
    """clip_fraction and ratio, (sum, count) over the active tokens."""
    count = active.sum()
    return {
        "clip_fraction": (is_clipped.sum().float(), count),
        "ratio": (torch.where(active, ratio, 0.0).detach().sum(), count),
    }


def refuse_kl_without_reference(kl_coef: float, ref_logps: Tensor | None) -> None:
    refuse_negative("kl_coef", kl_coef, " (it would pay the policy for drifting)")
    if kl_coef > 0 and ref_logps is None:
        raise ValueError(f"kl_coef = {kl_coef} needs ref_logps, the log-probs of the frozen reference")


def ppo_value_loss(
    values: Tensor,  # [B, T] V
    old_values: Tensor,  # [B, T] V_old: what the critic said when the rollout was scored
    returns: Tensor,  # [B, T] R
    weights: Tensor,  # [B, T] w, exactly 0 where inactive
    *,
    clip_eps: float | None = 0.2,  # None: no clip
) -> tuple[Tensor, Metrics]:
    """The clipped squared error of the values, Σ w over all tokens -> (loss [], metrics).

    metrics, (sum, count) over active tokens: value_clip_fraction, value (the mean prediction), return.
    """
    same_shape("B T", {"values": values, "old_values": old_values, "returns": returns, "weights": weights})
    refuse_negative("clip_eps", clip_eps or 0.0)
    active, weights, values, old_values, returns = what_counts(weights, values, old_values.detach(), returns.detach())

    unclipped = (values - returns).square()
    clipped = unclipped
    if clip_eps is not None:
        clipped = (torch.clamp(values, old_values - clip_eps, old_values + clip_eps) - returns).square()
    per_token = 0.5 * torch.maximum(unclipped, clipped)
    loss = (weights * per_token).sum()

    count = active.sum()
    is_clipped = clipped > unclipped
    return loss, {
        "value_clip_fraction": (is_clipped.sum().float(), count),
        "value": (values.detach().sum(), count),
        "return": (returns.sum(), count),
    }


def walk_through() -> None:
    """The docstring's example in plain Python floats: two tokens, then two values."""
    import math

    from losses.walk import agree, show

    ratios, advantages, eps, weight = [1.3, 0.9], [1.0, -2.0], 0.2, 0.5
    print("two tokens: ρ = 1.3 with A = 1, ρ = 0.9 with A = −2; ε = 0.2, w = ½ each\n")
    unclipped = [r * a for r, a in zip(ratios, advantages, strict=True)]
    clipped = [min(max(r, 1 - eps), 1 + eps) * a for r, a in zip(ratios, advantages, strict=True)]
    worse = [min(x, y) for x, y in zip(unclipped, clipped, strict=True)]
    show("ρ A", "ratio times advantage", unclipped)
    show("clip(ρ) A", "the ratio held within 1 ± ε", clipped)
    show("min", "the worse of the two", worse)
    show("policy loss", "−Σ w min", -sum(weight * x for x in worse))
    old = torch.tensor([[-1.0, -1.0]])
    policy = old + torch.tensor([[math.log(r) for r in ratios]])
    weights = torch.full((1, 2), weight)
    agree(-sum(weight * x for x in worse), ppo_policy_loss(policy, old, torch.tensor([advantages]), weights)[0].item())

    values, old_values, returns = [0.5, 0.1], [0.0, 0.0], [1.0, 1.0]
    print("\ntwo values: V = 0.5 and 0.1, both were 0 at the rollout, both returns 1\n")
    unclipped = [(v - r) ** 2 for v, r in zip(values, returns, strict=True)]
    clipped = [(min(max(v, o - eps), o + eps) - r) ** 2 for v, o, r in zip(values, old_values, returns, strict=True)]
    loss = sum(weight * 0.5 * max(a, b) for a, b in zip(unclipped, clipped, strict=True))
    show("unclipped", "(V − R)²", unclipped)
    show("clipped", "(clip(V, V_old ± ε) − R)²", clipped)
    show("value loss", "Σ w ½ max", loss)
    v, old_v, r = (torch.tensor([x]) for x in (values, old_values, returns))
    agree(loss, ppo_value_loss(v, old_v, r, weights)[0].item())


if __name__ == "__main__":
    walk_through()
