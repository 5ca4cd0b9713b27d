"""DPO-positive: DPO that pays for every nat the chosen answer falls below the reference.

    L = −log σ( β · [ h − λ · max(0, −r_w) ] )

    r_w = log π(y_w|x) − log π_ref(y_w|x)        r_l: the same of y_l        h = r_w − r_l

Source: Pal et al. 2024 (Smaug), arXiv 2402.13228, the section on DPOP (w = chosen, l = rejected). Kept: everything; λ
is their λ, and multiplies nats, inside β. Changed: per-pair weights in place of the mean.

DPO sees the difference only, and where the two answers are alike it can be had most cheaply by making both unlikely,
the rejected one more. The penalty is 0 as long as the chosen answer is as likely as it was; below, its log-prob counts
1 + λ times, and the rejected one's still once. (The other cure is `dpo.sft_weight`: an NLL term, which pulls always.)

Where r_w < 0 the gradient with respect to log π(y_w) is −β (1 + λ)(1 − σ(·)), above it −β (1 − σ(·)): with λ = 50 a
single nat of fall outweighs any margin that was won.

>>> import torch
>>> chosen, rejected, reference = torch.tensor([-12.0]), torch.tensor([-15.0]), torch.tensor([-11.0])
>>> loss, metrics = dpop_loss(chosen, rejected, reference, reference, beta=0.1, penalty=5.0)
>>> round(loss.item(), 6)                # r_w = −1, r_l = −4, h = 3: −log σ(0.1 (3 − 5 · 1)) = −log σ(−0.2)
0.798139
>>> round(metrics["margin"][0].item(), 6)                                        # β h, without the penalty
0.3
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.door import Metrics, refuse_negative
from losses.margin import log_ratios, pair_metrics


def dpop_loss(
    policy_chosen_logps: Tensor,  # [B] log π(y_w|x), summed over the completion (losses.logprobs.sequence_logps)
    policy_rejected_logps: Tensor,  # [B] log π(y_l|x)
    ref_chosen_logps: Tensor,  # [B] log π_ref(y_w|x), no gradient
    ref_rejected_logps: Tensor,  # [B] log π_ref(y_l|x)
    *,
    beta: float = 0.3,
    penalty: float = 50.0,  # λ; 0 is DPO
    weights: Tensor
    | None = None,  # [B] 1 / pairs of the whole optimiser step; 0 leaves a pair out; None: the plain mean
) -> tuple[Tensor, Metrics]:
    """Σ w · −log σ(β (h − λ max(0, −r_w))) over the pairs -> (loss [], metrics).

    metrics, (sum, count) over the pairs that count: rewards_chosen (β r_w: below 0, the penalty is at work),
    rewards_rejected, accuracy, margin (β h).
    """
    refuse_negative("beta", beta)
    refuse_negative("penalty", penalty, " (it would pay for a fall of the chosen answer)")
    active, weights, chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, weights=weights
    )

    fallen = torch.relu(-chosen)  # max(0, −r_w), in nats
    difference = chosen - rejected  # h
    per_pair = -logsigmoid(beta * (difference - penalty * fallen))
    loss = (weights * per_pair).sum()
    return loss, pair_metrics(beta * chosen, beta * rejected, active)


def walk_through() -> None:
    """The docstring's example in plain Python floats."""
    import math

    from losses.walk import agree, show

    beta, penalty = 0.1, 5.0
    print("policy: log π(chosen) = −12, log π(rejected) = −15; reference: −11 and −11; β = 0.1, λ = 5\n")
    r_w, r_l = -12.0 + 11.0, -15.0 + 11.0
    inner = beta * (r_w - r_l - penalty * max(0.0, -r_w))
    show("r_w", "log π(y_w) − log π_ref(y_w): it has fallen", r_w)
    show("r_l", "log π(y_l) − log π_ref(y_l)", r_l)
    show("h", "r_w − r_l: DPO would be content", r_w - r_l)
    show("penalty", "λ max(0, −r_w)", penalty * max(0.0, -r_w))
    show("loss", "−log σ(β (h − penalty))", math.log1p(math.exp(-inner)))
    show("gradient", "∂L/∂log π(y_w) = −β (1 + λ)(1 − σ(·))", -beta * (1 + penalty) / (1 + math.exp(inner)))
    tensors = [torch.tensor([x]) for x in (-12.0, -15.0, -11.0, -11.0)]
    agree(math.log1p(math.exp(-inner)), dpop_loss(*tensors, beta=beta, penalty=penalty)[0].item())


if __name__ == "__main__":
    walk_through()
