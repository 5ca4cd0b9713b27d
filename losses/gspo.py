"""Group sequence policy optimisation: GRPO's surrogate with one ratio for the whole answer, the geometric mean of its
tokens'.

    ρ_i = ( π_θ(y_i|x) / π_old(y_i|x) )^(1/|y_i|) = exp( mean_t (log π_θ(o_t) − log π_old(o_t)) )
    L = Σ_i W_i · ( − min( ρ_i A_i, clip(ρ_i, 1 − ε_low, 1 + ε_high) A_i ) )        W_i = Σ_t w_t = 1/R: one vote each

Source: Zheng et al. 2025 (Qwen), arXiv 2507.18071, eq. 5. Kept: all of it; the clips are the paper's, 3e-4 and 4e-4,
far narrower than GRPO's 0.2, because a mean over many tokens hardly leaves 1. Added: β · KL, token by token as in
losses/grpo.py (its k3_is has the ratio of the token, not ρ_i).

ρ_i is the same number at every token of an answer. So an answer is clipped whole, and its gradient is
ρ_i A_i · (1/|y_i|) Σ_t ∇log π(o_t): every token counts the same, where GRPO gives each its own ratio. With one update
per rollout ρ_i = 1, and it is GRPO with "sequence" weights.

A mistake of public code: ρ_i [B, 1] is broadcast over [B, T] and summed, so a long answer has |y_i| votes and the mean
has become a sum. Here the weights have to be "sequence" weights (losses/weights.py); others are refused.

>>> import torch
>>> log_ratio, weights = torch.tensor([[0.2, -0.1, 0.5]]), torch.tensor([[0.5, 0.5, 0.0]])    # two tokens, and padding
>>> old = torch.tensor([[-1.0, -1.0, -1.0]])
>>> loss, metrics = gspo_loss(old + log_ratio, old, torch.tensor([-1.0]), weights)
>>> round(loss.item(), 6)                     # ρ = exp((0.2 − 0.1) / 2) = 1.051271; A = −1: −min(−ρ, −1.0004) = ρ
1.051271
>>> round(gspo_loss(old + log_ratio, old, torch.tensor([1.0]), weights)[0].item(), 6)          # clipped at 1 + 4e-4
-1.0004
"""

import torch
from torch import Tensor

from losses.door import Metrics, same_shape, what_counts
from losses.grpo import kl_per_token, refuse_other_kl
from losses.kl import kl_metrics
from losses.ppo import clipped_surrogate


def gspo_loss(
    policy_logps: Tensor,  # [B, T] log π_θ, at the temperature of the rollout
    old_logps: Tensor,  # [B, T] log π_old, no gradient
    advantages: Tensor,  # [B] A, one per answer, or [B, T] with one value along each answer; no gradient
    weights: Tensor,  # [B, T] "sequence" weights w, exactly 0 where inactive (losses/weights.py)
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    ref_logps: Tensor | None = None,  # [B, T] log π_ref, no gradient
    kl_coef: float = 0.0,  # β
    kl_estimator: str = "k3_is",  # as in losses/grpo.py
) -> tuple[Tensor, Metrics]:
    """The clipped surrogate of the answers' ratios plus β · KL, Σ w over all tokens -> (loss [], metrics).

    metrics: clip_fraction and ratio, (sum, count) over the answers; with ref_logps also kl (k3) and kl_k1, over tokens.
    """
    same_shape(
        "B T", {"policy_logps": policy_logps, "old_logps": old_logps, "weights": weights, "ref_logps": ref_logps}
    )
    assert advantages.shape in (policy_logps.shape, policy_logps.shape[:1]), (
        f"advantages [B] or [B, T], got {list(advantages.shape)}"
    )
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(f"clip_low must lie in 0 … 1 and clip_high be at least 0, got {clip_low} and {clip_high}")
    refuse_other_kl(kl_coef, kl_estimator, ref_logps)
    if advantages.ndim == 1:
        advantages = advantages[:, None].expand_as(policy_logps)
    active, weights, policy_logps, old_logps, advantages = what_counts(
        weights, policy_logps, old_logps.detach(), advantages.detach()
    )
    refuse_token_weights(weights)
    if not one_value_each(advantages, active).all():
        raise ValueError("GSPO has one ratio per answer, so one advantage per answer: these differ along one")

    tokens = active.sum(dim=1, keepdim=True)  # |y_i| [B, 1]
    mean_log_ratio = (policy_logps - old_logps).sum(dim=1, keepdim=True) / tokens.clamp(min=1)  # 0 where inactive
    ratio = torch.exp(mean_log_ratio)  # ρ_i [B, 1]
    per_token, is_clipped = clipped_surrogate(ratio.expand_as(advantages), advantages, clip_low, clip_high)

    answers = tokens.squeeze(1) > 0  # [B]
    metrics = {
        "clip_fraction": (is_clipped.any(dim=1).sum().float(), answers.sum()),
        "ratio": (ratio.detach().squeeze(1)[answers].sum(), answers.sum()),
    }
    if ref_logps is not None:
        ref_logps = what_counts(weights, ref_logps)[2]
        if kl_coef > 0:
            per_token = per_token + kl_coef * kl_per_token(policy_logps, old_logps, ref_logps, kl_estimator)
        metrics |= kl_metrics(policy_logps, ref_logps, active)

    loss = (weights * per_token).sum()
    return loss, metrics


def one_value_each(values: Tensor, active: Tensor) -> Tensor:
    """[B, T] -> [B] bool: does a row hold one value wherever it is active (to 1e-5 of it)?"""
    high = torch.where(active, values, -torch.inf).amax(dim=1)
    low = torch.where(active, values, torch.inf).amin(dim=1)
    return high - low <= 1e-5 * low.abs()  # nothing active: −∞ ≤ ∞


def refuse_token_weights(weights: Tensor) -> None:
    """Every answer has one vote: its tokens share it evenly, and the votes are equal."""
    votes = weights.sum(dim=1)  # [B]
    has_any = votes != 0
    equal = one_value_each(votes[None], has_any[None])
    if not (one_value_each(weights, weights != 0).all() and equal.all()):
        raise ValueError(
            'GSPO gives every answer one vote: weights must be token_weights(active, "sequence"), these give answers '
            f"{votes[has_any].tolist()}"
        )


def walk_through() -> None:
    """The docstring's example in plain Python floats: one answer of two tokens, once with A = −1, once with A = 1."""
    import math

    from losses.walk import agree, show

    log_ratio, low, high = [0.2, -0.1], 3e-4, 4e-4
    print("one answer of two tokens, log-ratios 0.2 and −0.1 (and a third that is padding)\n")
    mean = sum(log_ratio) / len(log_ratio)
    ratio = math.exp(mean)
    clipped = min(max(ratio, 1 - low), 1 + high)
    show("mean", "Σ_t (log π_θ − log π_old) / |y|", mean)
    show("ρ", "exp(mean)", ratio)
    show("clipped", "clip(ρ, 1 − 3e-4, 1 + 4e-4)", clipped)
    old, weights = torch.full((1, 3), -1.0), torch.tensor([[0.5, 0.5, 0.0]])
    for advantage in (-1.0, 1.0):
        loss = sum(w * -min(ratio * advantage, clipped * advantage) for w in (0.5, 0.5))
        show(f"loss, A = {advantage:+.0f}", "Σ_t w · −min(ρ A, clip(ρ) A)", loss)
        given = (old + torch.tensor([[*log_ratio, 0.5]]), old, torch.tensor([advantage]), weights)
        agree(loss, gspo_loss(*given)[0].item())


if __name__ == "__main__":
    walk_through()
