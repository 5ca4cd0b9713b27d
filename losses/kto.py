"""Kahneman-Tversky optimisation: learn from single answers that were judged good or bad, no pairs.

    desirable     L = λ_D · ( 1 − σ( β (r − z0) ) )
    undesirable   L = λ_U · ( 1 − σ( β (z0 − r) ) )        r = log π(y|x) − log π_ref(y|x)
    z0 = max( 0, mean of log π(y'|x) − log π_ref(y'|x) )   over prompts x with an answer y' to *another* prompt

Source: Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7 and 8. Kept: everything; no gradient flows through z0. Changed:
per-row weights in place of the mean.

z0 stands for KL(π‖π_ref), what the model has drifted anyway: an answer is a gain only if it rose by more than that. The
mismatched answers are what a step has at hand; they are not samples of π, so this is no unbiased KL, and below 0 it is
clamped. What goes wrong: a matched pair among them (the last row of an odd number, paired with itself) lets the row's
own reward into its baseline; of a batch of one there is no mismatched pair at all; and a z0 per micro-batch or per
process makes the loss depend on how a step was cut (loops/kto.py takes it over the whole step).

λ_D · (number of desirable) and λ_U · (number of undesirable) should stay within 1 and 4/3 of each other, say the
authors: with few good answers raise λ_D.

The gradient of a desirable row is −λ_D β σ' (β (r − z0)), at most λ_D β / 4 and largest at r = z0: rows far on either
side are left alone, a hopeless one too.

>>> import torch
>>> kl = kto_kl(torch.tensor([-9.7, -11.1]), torch.tensor([-10.0, -11.0]), torch.tensor([True, True]))
>>> round(kl.item(), 6)                                       # mismatched r = 0.3 and −0.1
0.1
>>> policy, reference = torch.tensor([-9.0, -10.5]), torch.tensor([-10.0, -10.0])           # r = 1 and −0.5
>>> loss, metrics = kto_loss(policy, reference, torch.tensor([True, False]), kl)
>>> round(loss.item(), 6)              # ½ (1 − σ(0.1 · (1 − 0.1)) + 1 − σ(0.1 · (0.1 + 0.5))) = ½ (0.477515 + 0.485005)
0.48126
"""

import torch
from torch import Tensor

from losses.door import Metrics, at_least_float32, refuse_negative, same_shape, what_counts


def kto_loss(
    policy_logps: Tensor,  # [B] log π(y|x), summed over the completion
    ref_logps: Tensor,  # [B] log π_ref(y|x), no gradient
    desirable: Tensor,  # [B] bool: the answer was judged good
    kl: Tensor | float,  # z0, one number for the whole optimiser step (kto_kl), no gradient
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,  # λ_D
    undesirable_weight: float = 1.0,  # λ_U
    weights: Tensor | None = None,  # [B] 1 / rows of the whole optimiser step; 0 leaves a row out; None: the plain mean
) -> tuple[Tensor, Metrics]:
    """Σ w · λ (1 − σ(± β (r − z0))) over the rows -> (loss [], metrics). ½ λ at the start.

    metrics, (sum, count) over the rows that count: rewards_chosen (β r of the desirable), rewards_rejected (of the
    others), accuracy (r on its label's side of z0).
    """
    same_shape("B", {"policy_logps": policy_logps, "ref_logps": ref_logps, "desirable": desirable, "weights": weights})
    assert desirable.dtype == torch.bool, f"desirable [B] bool, got {desirable.dtype}"
    refuse_negative("beta", beta)
    refuse_negative("desirable_weight", desirable_weight)
    refuse_negative("undesirable_weight", undesirable_weight)
    active, weights, policy, ref = what_counts(weights, policy_logps, ref_logps.detach())
    z0 = torch.as_tensor(kl, device=policy.device).detach()
    assert z0.ndim == 0, f"kl is one number for the whole step, got {list(z0.shape)}"

    log_ratio = policy - ref  # r
    side = torch.where(desirable, 1.0, -1.0)
    scale = torch.where(desirable, desirable_weight, undesirable_weight)  # λ
    gain = side * (log_ratio - z0)
    loss = (weights * scale * (1 - torch.sigmoid(beta * gain))).sum()

    good, bad, rewards = active & desirable, active & ~desirable, beta * log_ratio.detach()
    return loss, {
        "rewards_chosen": (torch.where(good, rewards, 0.0).sum(), good.sum()),
        "rewards_rejected": (torch.where(bad, rewards, 0.0).sum(), bad.sum()),
        "accuracy": ((active & (gain > 0)).sum().float(), active.sum()),
    }


def kto_kl(
    policy_logps: Tensor,  # [N] log π(y'|x) of mismatched prompt and answer, summed; all of the optimiser step
    ref_logps: Tensor,  # [N] log π_ref(y'|x)
    active: Tensor,  # [N] bool: False leaves a row out (one that only fills a micro-batch)
) -> Tensor:
    """z0 = max(0, mean of log π − log π_ref over the active rows): one number in nats, no gradient; 0 where none is."""
    same_shape("N", {"policy_logps": policy_logps, "ref_logps": ref_logps, "active": active})
    assert active.dtype == torch.bool, f"active [N] bool, got {active.dtype}"
    log_ratio = torch.where(active, at_least_float32(policy_logps) - at_least_float32(ref_logps), 0.0).detach()
    return (log_ratio.sum() / active.sum().clamp(min=1)).clamp(min=0)


def walk_through() -> None:
    """The docstring's example in plain Python floats."""
    import math

    from losses.walk import agree, show

    beta, mismatched, r = 0.1, [-9.7 + 10.0, -11.1 + 11.0], [-9.0 + 10.0, -10.5 + 10.0]
    print("two rows: r = 1, judged good; r = −0.5, judged bad; the prompts with each other's answers: 0.3 and −0.1\n")
    z0 = max(0.0, sum(mismatched) / len(mismatched))
    losses = [1 - 1 / (1 + math.exp(-beta * gain)) for gain in (r[0] - z0, z0 - r[1])]
    show("z0", "max(0, mean of the mismatched log-ratios)", z0)
    show("gain", "r − z0 (good), z0 − r (bad)", [r[0] - z0, z0 - r[1]])
    show("per row", "1 − σ(β · gain)", losses)
    tensors = torch.tensor([-9.0, -10.5]), torch.tensor([-10.0, -10.0]), torch.tensor([True, False])
    agree(sum(losses) / 2, kto_loss(*tensors, z0, beta=beta)[0].item())


if __name__ == "__main__":
    walk_through()
