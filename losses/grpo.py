"""Group relative policy optimisation: the clipped surrogate and a KL penalty, per token.

    ρ_t = π_θ(o_t) / π_old(o_t)
    L = Σ w · ( − min( ρ_t A, clip(ρ_t, 1 − ε_low, 1 + ε_high) A ) + β · KL_t )

Source: Shao et al. 2024 (DeepSeekMath), arXiv 2402.03300, eq. 3 (surrogate) and eq. 4 (KL); separate ε_low and ε_high:
DAPO, arXiv 2503.14476, eq. 10. Kept: the per-token ratio and clip (PPO's, with another advantage: losses/ppo.py).
Changed: the paper's 1/G Σ 1/|o_i| Σ is one choice of `weights` among three (losses/weights.py), and the KL term is
weighted by ρ (`k3_is`): without it the gradient of the paper's k3 descends KL(π_ref‖π). kl_estimator="k3" is the
paper's. With either, KL_t is that of the next-token distributions at the state where o_t was sampled: a token is not
charged for the KL of what follows it, as it is where the KL is paid in the reward (losses/kl.py).

With one update per rollout, old is the policy itself, ρ = 1, nothing is clipped, and the gradient is
(−A + β log(π/π_ref)) ∇log π per token, plain REINFORCE. The *value* of the surrogate then says nothing about progress:
advantages sum to 0 in a group, so it is exactly 0 with "sequence" weights, and with "token" weights −Σ |o_i| A_i / N,
whether long answers did better than short ones. Watch the reward.

>>> import torch
>>> old = torch.tensor([[-1.0], [-1.0]])
>>> policy = old + torch.log(torch.tensor([[1.3], [0.7]]))                       # ρ = 1.3 and 0.7
>>> loss, metrics = grpo_loss(policy, old, torch.tensor([1.0, -1.0]), torch.tensor([[0.5], [0.5]]))
>>> round(loss.item(), 6)                       # clipped both: ½ · (−1.2 · 1) + ½ · (−0.8 · −1) = −0.6 + 0.4
-0.2
>>> {name: round((total / count).item(), 6) for name, (total, count) in metrics.items()}
{'clip_fraction': 1.0, 'ratio': 1.0}
"""

import torch
from torch import Tensor

from losses.door import Metrics, same_shape, what_counts
from losses.kl import k2, k3, k3_is, kl_metrics
from losses.ppo import clipped_surrogate, refuse_kl_without_reference, surrogate_metrics


def grpo_loss(
    policy_logps: Tensor,  # [B, T] log π_θ, at the temperature of the rollout
    old_logps: Tensor,  # [B, T] log π_old, no gradient
    advantages: Tensor,  # [B] or [B, T] A, no gradient
    weights: Tensor,  # [B, T] w, exactly 0 where inactive (losses/weights.py)
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ref_logps: Tensor | None = None,  # [B, T] log π_ref, no gradient
    kl_coef: float = 0.0,  # β
    kl_estimator: str = "k3_is",  # or "k3", the paper's, or "k2"; "k1" is refused, its expected gradient is 0
) -> tuple[Tensor, Metrics]:
    """The clipped surrogate plus β · KL, Σ w over all tokens -> (loss [], metrics).

    metrics, (sum, count) over active tokens: clip_fraction, ratio; with ref_logps also kl (k3) and kl_k1.
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

    ratio = torch.exp(policy_logps - old_logps)  # ρ [B, T]
    per_token, is_clipped = clipped_surrogate(ratio, advantages, clip_low, clip_high)
    metrics = surrogate_metrics(ratio, is_clipped, active)
    if ref_logps is not None:
        ref_logps = what_counts(weights, ref_logps)[2]
        if kl_coef > 0:
            per_token = per_token + kl_coef * kl_per_token(policy_logps, old_logps, ref_logps, kl_estimator)
        metrics |= kl_metrics(policy_logps, ref_logps, active)

    loss = (weights * per_token).sum()
    return loss, metrics


def kl_per_token(policy_logps: Tensor, old_logps: Tensor, ref_logps: Tensor, estimator: str) -> Tensor:
    """KL_t [B, T], from three [B, T], by "k3_is", "k3" or "k2"; GSPO and CISPO pay it as well."""
    if estimator == "k3_is":
        return k3_is(policy_logps, ref_logps, old_logps)
    return {"k2": k2, "k3": k3}[estimator](policy_logps, ref_logps)


def refuse_other_kl(kl_coef: float, estimator: str, ref_logps: Tensor | None) -> None:
    refuse_kl_without_reference(kl_coef, ref_logps)
    if estimator == "k1":
        raise ValueError('kl_estimator "k1" as a loss has an expected gradient of 0: use "k3_is" (losses/kl.py)')
    if estimator not in ("k2", "k3", "k3_is"):
        raise ValueError(f'kl_estimator must be "k3_is", "k3" or "k2", got {estimator!r}')


def walk_through() -> None:
    """The docstring's example in plain Python floats: two answers of one token."""
    import math

    from losses.walk import agree, show

    ratios, advantages, weights, low, high = [1.3, 0.7], [1.0, -1.0], [0.5, 0.5], 0.2, 0.2
    print("two answers of one token: ρ = 1.3 with A = +1, ρ = 0.7 with A = −1; ε = 0.2; each counts ½\n")
    clipped = [min(max(r, 1 - low), 1 + high) for r in ratios]
    unclipped_term = [r * a for r, a in zip(ratios, advantages, strict=True)]
    clipped_term = [c * a for c, a in zip(clipped, advantages, strict=True)]
    per_token = [-min(u, c) for u, c in zip(unclipped_term, clipped_term, strict=True)]
    loss = sum(w * x for w, x in zip(weights, per_token, strict=True))
    show("ρ", "π_θ / π_old", ratios)
    show("clipped", "clip(ρ, 1 − ε_low, 1 + ε_high)", clipped)
    show("ρ A", "", unclipped_term)
    show("clip(ρ) A", "", clipped_term)
    show("per token", "−min(ρ A, clip(ρ) A)", per_token)
    show("loss", "Σ w · per token", loss)
    old = torch.tensor([[-1.0], [-1.0]])
    policy = old + torch.tensor([[math.log(r)] for r in ratios])
    agree(loss, grpo_loss(policy, old, torch.tensor(advantages), torch.tensor(weights)[:, None])[0].item())


if __name__ == "__main__":
    walk_through()
