"""Direct preference optimisation against a frozen reference.

    h = β · [ (log π(y_w|x) − log π_ref(y_w|x)) − (log π(y_l|x) − log π_ref(y_l|x)) ]        the margin
    L = − log σ(h)

Source: Rafailov et al. 2023, arXiv 2305.18290, eq. 7 (w = chosen, l = rejected). Label smoothing ε is conservative DPO
(Mitchell 2023, "A note on DPO with noisy preferences"): L = −(1 − ε) log σ(h) − ε log σ(−h), a label is wrong with
chance ε. Kept: everything; log π(y|x) is a *sum* over the completion's tokens, never a mean. Changed: per-pair weights
in place of the mean.

The implicit reward of an answer is β · (log π − log π_ref); accuracy asks whether the chosen one's is higher. Watch
the chosen reward itself, too: the loss sees only the difference, and both can fall together.

The gradient of one pair is −β · (1 − σ(h)) · (∇ log π(y_w) − ∇ log π(y_l)): where policy == reference it is β / 2
whatever the pair, and a pair that is already won pulls less and less.

>>> import torch
>>> chosen, rejected, reference = torch.tensor([-10.0]), torch.tensor([-12.0]), torch.tensor([-11.0])
>>> loss, metrics = dpo_loss(chosen, rejected, reference, reference, beta=0.1)
>>> round(loss.item(), 6)                          # h = 0.1 · ((−10 + 11) − (−12 + 11)) = 0.2,  −log σ(0.2)
0.598139
>>> {name: round((total / count).item(), 6) for name, (total, count) in metrics.items()}
{'rewards_chosen': 0.1, 'rewards_rejected': -0.1, 'accuracy': 1.0, 'margin': 0.2}
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.door import Metrics, refuse_negative
from losses.margin import log_ratios, pair_metrics, refuse_smoothing


def dpo_loss(
    policy_chosen_logps: Tensor,  # [B] log π(y_w|x), *summed* over the completion (losses.logprobs.sequence_logps)
    policy_rejected_logps: Tensor,  # [B] log π(y_l|x)
    ref_chosen_logps: Tensor,  # [B] log π_ref(y_w|x), no gradient
    ref_rejected_logps: Tensor,  # [B] log π_ref(y_l|x)
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,  # ε, the assumed share of wrong labels
    weights: Tensor
    | None = None,  # [B] 1 / pairs of the whole optimiser step; 0 leaves a pair out; None: the plain mean
) -> tuple[Tensor, Metrics]:
    """Σ w · −log σ(h) over the pairs -> (loss [], metrics).

    metrics, (sum, count) over the pairs that count: rewards_chosen, rewards_rejected, accuracy, margin.
    """
    refuse_negative("beta", beta)
    refuse_smoothing(label_smoothing)
    active, weights, chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, weights=weights
    )

    rewards_chosen, rewards_rejected = beta * chosen, beta * rejected  # [B]
    margin = rewards_chosen - rewards_rejected  # h
    per_pair = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    loss = (weights * per_pair).sum()
    return loss, pair_metrics(rewards_chosen, rewards_rejected, active)


def walk_through() -> None:
    """The docstring's example in plain Python floats."""
    import math

    from losses.walk import agree, show

    chosen, rejected, ref_chosen, ref_rejected, beta = -10.0, -12.0, -11.0, -11.0, 0.1
    print("policy: log π(chosen) = −10, log π(rejected) = −12; reference: −11 and −11; β = 0.1\n")
    rewards_chosen = beta * (chosen - ref_chosen)
    rewards_rejected = beta * (rejected - ref_rejected)
    margin = rewards_chosen - rewards_rejected
    loss = -math.log(1 / (1 + math.exp(-margin)))
    show("rewards_chosen", "β (log π(y_w) − log π_ref(y_w))", rewards_chosen)
    show("rewards_rejected", "β (log π(y_l) − log π_ref(y_l))", rewards_rejected)
    show("margin h", "rewards_chosen − rewards_rejected", margin)
    show("σ(h)", "1 / (1 + e^−h): the chance that chosen wins", 1 / (1 + math.exp(-margin)))
    show("loss", "−log σ(h)", loss)
    show("gradient", "∂L/∂log π(y_w) = −β (1 − σ(h))", -beta * (1 - 1 / (1 + math.exp(-margin))))
    tensors = [torch.tensor([x]) for x in (chosen, rejected, ref_chosen, ref_rejected)]
    agree(loss, dpo_loss(*tensors, beta=beta)[0].item())


if __name__ == "__main__":
    walk_through()
