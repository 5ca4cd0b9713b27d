"""What the losses on pairs have in common: how far each answer has moved from the reference, and what is told of it.

    r_w = log π(y_w|x) − log π_ref(y_w|x)        r_l: the same of the rejected answer        h = r_w − r_l

DPO, IPO, robust DPO, DPOP and APO are functions of these numbers alone (w = chosen, l = rejected). β r is the implicit
reward of an answer, β h the margin that the metrics tell.

>>> import torch
>>> sides = torch.tensor([-10.0]), torch.tensor([-12.0]), torch.tensor([-11.0]), torch.tensor([-11.0])
>>> active, weights, chosen, rejected = log_ratios(*sides, weights=None)
>>> chosen.item(), rejected.item()                                     # r_w = −10 + 11,  r_l = −12 + 11
(1.0, -1.0)
"""

from torch import Tensor

from losses.door import Metrics, same_shape, what_counts


def log_ratios(
    policy_chosen_logps: Tensor,  # [B] log π(y_w|x), of the whole completion
    policy_rejected_logps: Tensor,  # [B] log π(y_l|x)
    ref_chosen_logps: Tensor,  # [B] log π_ref(y_w|x), no gradient
    ref_rejected_logps: Tensor,  # [B] log π_ref(y_l|x)
    *,
    weights: Tensor | None,  # [B] 0 leaves a pair out; None: the plain mean
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(active, weights, r_w, r_l), four [B]: which pairs count, and 0 in place of what does not."""
    assert policy_chosen_logps.ndim == 1, (
        f"log-probs summed over the completion, [B] (losses.logprobs.sequence_logps), got {list(policy_chosen_logps.shape)}"
    )
    same_shape(
        "B",
        {
            "policy_chosen_logps": policy_chosen_logps,
            "policy_rejected_logps": policy_rejected_logps,
            "ref_chosen_logps": ref_chosen_logps,
            "ref_rejected_logps": ref_rejected_logps,
            "weights": weights,
        },
    )
    active, weights, chosen, rejected, ref_chosen, ref_rejected = what_counts(
        weights, policy_chosen_logps, policy_rejected_logps, ref_chosen_logps.detach(), ref_rejected_logps.detach()
    )
    return active, weights, chosen - ref_chosen, rejected - ref_rejected


def pair_metrics(
    rewards_chosen: Tensor,  # [B] 0 where a pair does not count
    rewards_rejected: Tensor,  # [B]
    active: Tensor,  # [B] bool
) -> Metrics:
    """(sum, count) over the pairs that count: rewards_chosen, rewards_rejected, accuracy (chosen above), margin."""
    count, margin = active.sum(), (rewards_chosen - rewards_rejected).detach()
    return {
        "rewards_chosen": (rewards_chosen.detach().sum(), count),
        "rewards_rejected": (rewards_rejected.detach().sum(), count),
        "accuracy": ((margin > 0).sum().float(), count),
        "margin": (margin.sum(), count),
    }


def refuse_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in 0 … 0.5 (the share of wrong labels), got {label_smoothing}")
