"""Anchored preference optimisation: say where each answer goes, not only how far apart the two end.

    zero    L = 1 − σ(β r_w) + σ(β r_l)              chosen up, rejected down
    down    L = σ(β r_w) + 1 − σ(β (r_w − r_l))      both down, the rejected one further

    r_w = log π(y_w|x) − log π_ref(y_w|x)        r_l: the same of y_l

Source: D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7 and 8 (w = chosen, l = rejected). Kept: everything. Changed:
per-pair weights in place of the mean.

Which one? `zero` where the chosen answers are better than what the model says itself (a stronger model or a person
wrote them). `down` where the model says better things than both answers: even the chosen one is then to be unlearned a
little, and with `zero` the model would learn from its inferiors.

σ is bounded, so every pair's pull fades on either side: |∂L/∂r| is at most β / 4, and where an answer has moved
by many times 1/β it is all but left alone.

>>> import torch
>>> up, down, reference = torch.tensor([-10.0]), torch.tensor([-12.0]), torch.tensor([-11.0])
>>> round(apo_zero_loss(up, down, reference, reference, beta=0.1)[0].item(), 6)      # 1 − σ(0.1) + σ(−0.1)
0.950042
>>> round(apo_down_loss(up, down, reference, reference, beta=0.1)[0].item(), 6)      # σ(0.1) + 1 − σ(0.2)
0.975145
"""

import torch
from torch import Tensor

from losses.door import Metrics, refuse_negative
from losses.margin import log_ratios, pair_metrics


def apo_zero_loss(
    policy_chosen_logps: Tensor,  # [B] log π(y_w|x), summed over the completion (losses.logprobs.sequence_logps)
    policy_rejected_logps: Tensor,  # [B] log π(y_l|x)
    ref_chosen_logps: Tensor,  # [B] log π_ref(y_w|x), no gradient
    ref_rejected_logps: Tensor,  # [B] log π_ref(y_l|x)
    *,
    beta: float = 0.1,
    weights: Tensor
    | None = None,  # [B] 1 / pairs of the whole optimiser step; 0 leaves a pair out; None: the plain mean
) -> tuple[Tensor, Metrics]:
    """Σ w · (1 − σ(β r_w) + σ(β r_l)) over the pairs -> (loss [], metrics). 1 at the start, 0 at best.

    metrics, (sum, count) over the pairs that count: rewards_chosen, rewards_rejected, accuracy, margin."""
    refuse_negative("beta", beta)
    active, weights, chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, weights=weights
    )

    rewards_chosen, rewards_rejected = beta * chosen, beta * rejected  # [B]
    per_pair = 1 - torch.sigmoid(rewards_chosen) + torch.sigmoid(rewards_rejected)
    loss = (weights * per_pair).sum()
    return loss, pair_metrics(rewards_chosen, rewards_rejected, active)


def apo_down_loss(
    policy_chosen_logps: Tensor,  # [B] log π(y_w|x), summed over the completion (losses.logprobs.sequence_logps)
    policy_rejected_logps: Tensor,  # [B] log π(y_l|x)
    ref_chosen_logps: Tensor,  # [B] log π_ref(y_w|x), no gradient
    ref_rejected_logps: Tensor,  # [B] log π_ref(y_l|x)
    *,
    beta: float = 0.1,
    weights: Tensor
    | None = None,  # [B] 1 / pairs of the whole optimiser step; 0 leaves a pair out; None: the plain mean
) -> tuple[Tensor, Metrics]:
    """Σ w · (σ(β r_w) + 1 − σ(β (r_w − r_l))) over the pairs -> (loss [], metrics). 1 at the start, 0 at best.

    metrics as apo_zero_loss."""
    refuse_negative("beta", beta)
    active, weights, chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, weights=weights
    )

    rewards_chosen, rewards_rejected = beta * chosen, beta * rejected  # [B]
    per_pair = torch.sigmoid(rewards_chosen) + 1 - torch.sigmoid(rewards_chosen - rewards_rejected)
    loss = (weights * per_pair).sum()
    return loss, pair_metrics(rewards_chosen, rewards_rejected, active)


def walk_through() -> None:
    """The docstring's example in plain Python floats."""
    import math

    from losses.walk import agree, show

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    print("policy: log π(chosen) = −10, log π(rejected) = −12; reference: −11 and −11; β = 0.1\n")
    up, down = 0.1 * (-10 + 11), 0.1 * (-12 + 11)
    zero, both_down = 1 - sigmoid(up) + sigmoid(down), sigmoid(up) + 1 - sigmoid(up - down)
    show("β r_w, β r_l", "β (log π − log π_ref)", [up, down])
    show("zero", "1 − σ(β r_w) + σ(β r_l)", zero)
    show("down", "σ(β r_w) + 1 − σ(β (r_w − r_l))", both_down)
    tensors = [torch.tensor([x]) for x in (-10.0, -12.0, -11.0, -11.0)]
    agree([zero, both_down], [loss(*tensors)[0].item() for loss in (apo_zero_loss, apo_down_loss)])


if __name__ == "__main__":
    walk_through()
