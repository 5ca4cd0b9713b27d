"""Robust DPO: the DPO loss that wrong labels leave unbiased.

    L = [ (1 − ε) ℓ(h) − ε ℓ(−h) ] / (1 − 2 ε)        ℓ(h) = −log σ(h)

    h = β · [ (log π(y_w|x) − log π_ref(y_w|x)) − (log π(y_l|x) − log π_ref(y_l|x)) ]

Source: Chowdhury et al. 2024, arXiv 2403.00409, §3 (w = chosen, l = rejected). Kept: everything. Changed: per-pair
weights in place of the mean.

ε is the share of pairs whose labels were swapped. Averaged over which ones that were, L is what DPO's loss would be
with clean labels: with chance 1 − ε the pair is right and counts L(h), with chance ε it is swapped and counts L(−h),
and (1 − ε) L(h) + ε L(−h) = ℓ(h). That is why a term is *subtracted*, and why the value may be negative: −ε ℓ(−h) falls
on and on where h grows. Conservative DPO (`label_smoothing` of losses/dpo.py) adds ε ℓ(−h) instead: its minimum lies at
the margin where σ(h) = 1 − ε, it never trusts a label further than that, and it is biased.

The gradient of one pair is −β [ (1 − ε)(1 − σ(h)) + ε σ(h) ] / (1 − 2ε): it stays above β ε / (1 − 2ε), so a pair that
is won keeps pulling: many epochs on few pairs run away.

>>> import torch
>>> chosen, rejected, reference = torch.tensor([-10.0]), torch.tensor([-12.0]), torch.tensor([-11.0])
>>> loss, metrics = robust_dpo_loss(chosen, rejected, reference, reference, beta=0.1, label_smoothing=0.1)
>>> round(loss.item(), 6)                    # h = 0.2: (0.9 · 0.598139 − 0.1 · 0.798139) / 0.8
0.573139
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.door import Metrics, refuse_negative
from losses.margin import log_ratios, pair_metrics, refuse_smoothing


def robust_dpo_loss(
    policy_chosen_logps: Tensor,  # [B] log π(y_w|x), summed over the completion (losses.logprobs.sequence_logps)
    policy_rejected_logps: Tensor,  # [B] log π(y_l|x)
    ref_chosen_logps: Tensor,  # [B] log π_ref(y_w|x), no gradient
    ref_rejected_logps: Tensor,  # [B] log π_ref(y_l|x)
    *,
    beta: float = 0.1,
    label_smoothing: float,  # ε, the share of labels that are swapped; 0 is DPO
    weights: Tensor
    | None = None,  # [B] 1 / pairs of the whole optimiser step; 0 leaves a pair out; None: the plain mean
) -> tuple[Tensor, Metrics]:
    """Σ w · [(1 − ε) ℓ(h) − ε ℓ(−h)] / (1 − 2ε) over the pairs -> (loss [], metrics).

    metrics, (sum, count) over the pairs that count: rewards_chosen, rewards_rejected, accuracy, margin.
    """
    refuse_negative("beta", beta)
    refuse_smoothing(label_smoothing)
    active, weights, chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, weights=weights
    )

    rewards_chosen, rewards_rejected = beta * chosen, beta * rejected  # [B]
    margin = rewards_chosen - rewards_rejected  # h
    as_labelled, swapped = -logsigmoid(margin), -logsigmoid(-margin)
    per_pair = ((1 - label_smoothing) * as_labelled - label_smoothing * swapped) / (1 - 2 * label_smoothing)
    loss = (weights * per_pair).sum()
    return loss, pair_metrics(rewards_chosen, rewards_rejected, active)


def walk_through() -> None:
    """The docstring's example in plain Python floats, and what a swapped label does to the mean."""
    import math

    from losses.walk import agree, show

    beta, eps = 0.1, 0.1
    print("policy: log π(chosen) = −10, log π(rejected) = −12; reference: −11 and −11; β = 0.1, ε = 0.1\n")
    margin = beta * ((-10 + 11) - (-12 + 11))
    as_labelled, swapped = math.log1p(math.exp(-margin)), math.log1p(math.exp(margin))
    loss = ((1 - eps) * as_labelled - eps * swapped) / (1 - 2 * eps)
    other = ((1 - eps) * swapped - eps * as_labelled) / (1 - 2 * eps)
    show("margin h", "β ((log π − log π_ref)(y_w) − the same of y_l)", margin)
    show("ℓ(h)", "−log σ(h)", as_labelled)
    show("ℓ(−h)", "−log σ(−h)", swapped)
    show("loss", "((1 − ε) ℓ(h) − ε ℓ(−h)) / (1 − 2ε)", loss)
    show("of the swapped pair", "the same with −h", other)
    show("mean over labels", "(1 − ε) loss + ε loss of the swapped pair = ℓ(h)", (1 - eps) * loss + eps * other)
    agree(as_labelled, (1 - eps) * loss + eps * other)
    tensors = [torch.tensor([x]) for x in (-10.0, -12.0, -11.0, -11.0)]
    agree(loss, robust_dpo_loss(*tensors, beta=beta, label_smoothing=eps)[0].item())


if __name__ == "__main__":
    walk_through()
