"""Identity preference optimisation: the margin is drawn to a target, not on and on.

    L = ( h − 1 / (2 β) )²        h = [log π(y_w|x) − log π_ref(y_w|x)] − [log π(y_l|x) − log π_ref(y_l|x)]

Source: Azar et al. 2023, arXiv 2310.12036 v2, eq. 17 (their τ is β; w = chosen, l = rejected). Kept: everything.
Changed: per-pair weights in place of the mean.

DPO's loss goes to 0 only as h goes to infinity, so where every label agrees it drives the rejected answers' probability
to 0, whatever β. Here a pair pushes back as soon as h is beyond 1 / (2β): a small β is a far target, not a weak pull.

Sums or means? The equation's log π(y|x) is a sum over tokens, and so h has a target in nats *per answer*. The authors
told others to take the mean over tokens, and half of the public code does: then the same β asks for 1 / (2β) nats *per
token* of every answer, long or short. β = 0.1 means 5 nats, or 5 nats per token: two things. This function takes what
it is given; `dpo.length_normalize` says which the loop gives.

The gradient of one pair is 2 (h − 1/(2β)) (∇ log π(y_w) − ∇ log π(y_l)): at the start −1/β, however long the answers.

>>> import torch
>>> chosen, rejected, reference = torch.tensor([-10.0]), torch.tensor([-12.0]), torch.tensor([-11.0])
>>> loss, metrics = ipo_loss(chosen, rejected, reference, reference, beta=0.1)
>>> round(loss.item(), 6)                                       # h = (−10 + 11) − (−12 + 11) = 2,  (2 − 5)²
9.0
>>> means = torch.tensor([[-10 / 4], [-12 / 3], [-11 / 4], [-11 / 3]], dtype=torch.float64)
>>> round(ipo_loss(*means, beta=0.1)[0].item(), 6)              # the same as means over 4 and 3 tokens: h = 7/12
19.506944
"""

import torch
from torch import Tensor

from losses.door import Metrics
from losses.margin import log_ratios, pair_metrics


def ipo_loss(
    policy_chosen_logps: Tensor,  # [B] log π(y_w|x), summed over the completion (losses.logprobs.sequence_logps)
    policy_rejected_logps: Tensor,  # [B] log π(y_l|x)
    ref_chosen_logps: Tensor,  # [B] log π_ref(y_w|x), no gradient
    ref_rejected_logps: Tensor,  # [B] log π_ref(y_l|x)
    *,
    beta: float = 0.1,  # the target of h is 1 / (2β)
    weights: Tensor
    | None = None,  # [B] 1 / pairs of the whole optimiser step; 0 leaves a pair out; None: the plain mean
) -> tuple[Tensor, Metrics]:
    """Σ w · (h − 1/(2β))² over the pairs -> (loss [], metrics). Log-probs all summed, or all means per token.

    metrics, (sum, count) over the pairs that count: rewards_chosen, rewards_rejected, accuracy, margin (β h: ½ is the
    target). ValueError for a β that is not above 0.
    """
    if not beta > 0:
        raise ValueError(f"beta must be above 0 (the target is 1 / (2 beta)), got {beta}")
    active, weights, chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, weights=weights
    )

    difference = chosen - rejected  # h
    per_pair = (difference - 1 / (2 * beta)).square()
    loss = (weights * per_pair).sum()
    return loss, pair_metrics(beta * chosen, beta * rejected, active)


def walk_through() -> None:
    """The docstring's example in plain Python floats: sums, then means."""
    from losses.walk import agree, show

    beta = 0.1
    print("policy: log π(chosen) = −10, log π(rejected) = −12; reference: −11 and −11; β = 0.1\n")
    for how, lengths in (("sums", (1, 1)), ("means over 4 and 3 tokens", (4, 3))):
        chosen, ref_chosen = -10 / lengths[0], -11 / lengths[0]
        rejected, ref_rejected = -12 / lengths[1], -11 / lengths[1]
        print(how)
        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        show("h", "(log π − log π_ref)(y_w) − the same of y_l", h)
        show("target", "1 / (2β)", 1 / (2 * beta))
        show("loss", "(h − target)²", (h - 1 / (2 * beta)) ** 2)
        show("gradient", "∂L/∂log π(y_w) = 2 (h − target)", 2 * (h - 1 / (2 * beta)))
        four = (chosen, rejected, ref_chosen, ref_rejected)
        tensors = [torch.tensor([x], dtype=torch.float64) for x in four]
        agree((h - 1 / (2 * beta)) ** 2, ipo_loss(*tensors, beta=beta)[0].item())


if __name__ == "__main__":
    walk_through()
