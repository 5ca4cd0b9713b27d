"""Reward models: one score per answer, learned from preferences (Bradley-Terry) or from right and wrong (outcome).

    Bradley-Terry   L = −log σ(s_w − s_l − m) + c · (s_w + s_l)²
    outcome (ORM)   L = −y log σ(s) − (1 − y) log σ(−s)          y = 1 for a right answer, 0 for a wrong one

Sources: Ouyang et al. 2022 (InstructGPT), arXiv 2203.02155, eq. 1 (w = chosen, l = rejected); the margin m of Llama 2,
arXiv 2307.09288, eq. 2; the centring term c of Eisenstein et al. 2023, arXiv 2312.09244, §2. Outcome models: Cobbe et
al. 2021, arXiv 2110.14168. Kept: everything. Changed: per-pair weights in place of the mean.

Only the difference of two scores is learned: adding 7 to every score changes no loss (without centring). So a score has
no zero of its own; the centring term puts the mean of a pair there. An outcome score does: σ(s) is the chance of being
right.

>>> import torch
>>> loss, metrics = bradley_terry_loss(torch.tensor([1.5]), torch.tensor([0.5]))
>>> round(loss.item(), 6)                                             # s_w − s_l = 1,  −log σ(1)
0.313262
>>> round(bradley_terry_loss(torch.tensor([1.5]), torch.tensor([0.5]), margin=0.5, center_coef=0.01)[0].item(), 6)
0.514077
>>> round(outcome_loss(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]))[0].item(), 6)      # ½ (0.313262 + 1.313262)
0.813262
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.door import Metrics, refuse_negative, same_shape, what_counts


def bradley_terry_loss(
    chosen_scores: Tensor,  # [B] s_w
    rejected_scores: Tensor,  # [B] s_l
    *,
    margin: Tensor | float | None = None,  # m, [B] or one number: how much higher the chosen score has to be; None is 0
    center_coef: float = 0.0,  # c
    weights: Tensor
    | None = None,  # [B] 1 / pairs of the whole optimiser step; 0 leaves a pair out; None: the plain mean
) -> tuple[Tensor, Metrics]:
    """Preferences: Σ w · (−log σ(s_w − s_l − m) + c (s_w + s_l)²) -> (loss [], metrics).

    metrics, (sum, count) over the pairs that count: rewards_chosen, rewards_rejected, accuracy, margin (s_w − s_l).
    """
    same_shape("B", {"chosen_scores": chosen_scores, "rejected_scores": rejected_scores, "weights": weights})
    refuse_negative("center_coef", center_coef, " (it would push the scores away from 0)")
    margin = torch.as_tensor(0.0 if margin is None else margin, device=chosen_scores.device).detach()
    assert margin.ndim == 0 or margin.shape == chosen_scores.shape, f"margin [B] or a number, got {list(margin.shape)}"
    active, weights, chosen, rejected, margin = what_counts(weights, chosen_scores, rejected_scores, margin)

    difference = chosen - rejected
    per_pair = -logsigmoid(difference - margin) + center_coef * (chosen + rejected).square()
    loss = (weights * per_pair).sum()

    count = active.sum()
    return loss, {
        "rewards_chosen": (chosen.detach().sum(), count),
        "rewards_rejected": (rejected.detach().sum(), count),
        "accuracy": ((difference > 0).sum().float(), count),
        "margin": (difference.detach().sum(), count),
    }


def outcome_loss(
    scores: Tensor,  # [B] s, logits
    labels: Tensor,  # [B] y in 0 … 1
    *,
    weights: Tensor | None = None,  # [B] 1 / rows of the whole optimiser step; 0 leaves a row out; None: the plain mean
) -> tuple[Tensor, Metrics]:
    """Right or wrong: Σ w · binary cross-entropy -> (loss [], metrics).

    metrics, (sum, count) over the rows that count: accuracy (σ(s) > ½ where the label is > ½), rewards (the mean
    score).
    """
    same_shape("B", {"scores": scores, "labels": labels, "weights": weights})
    active, weights, scores, labels = what_counts(weights, scores, labels.detach())
    if ((labels < 0) | (labels > 1)).any():
        raise ValueError(f"labels must lie in 0 … 1 (wrong, right), got {labels.tolist()}")
    per_row = -labels * logsigmoid(scores) - (1 - labels) * logsigmoid(-scores)
    loss = (weights * per_row).sum()

    count = active.sum()
    return loss, {
        "accuracy": ((active & ((scores > 0) == (labels > 0.5))).sum().float(), count),
        "rewards": (scores.detach().sum(), count),
    }


def walk_through() -> None:
    """The docstring's example in plain Python floats: one pair, then two labelled answers."""
    import math

    from losses.walk import agree, show

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    chosen, rejected, margin, center = 1.5, 0.5, 0.5, 0.01
    print("one pair: s_w = 1.5, s_l = 0.5; then margin m = 0.5 and centring c = 0.01\n")
    plain = -math.log(sigmoid(chosen - rejected))
    full = -math.log(sigmoid(chosen - rejected - margin)) + center * (chosen + rejected) ** 2
    show("difference", "s_w − s_l", chosen - rejected)
    show("σ(difference)", "the chance that chosen wins", sigmoid(chosen - rejected))
    show("loss", "−log σ(s_w − s_l)", plain)
    pair = torch.tensor([chosen]), torch.tensor([rejected])
    agree(plain, bradley_terry_loss(*pair)[0].item())
    show("gradient", "∂L/∂s_w = −(1 − σ(s_w − s_l))", -(1 - sigmoid(chosen - rejected)))
    show("with a margin", "−log σ(s_w − s_l − m)", -math.log(sigmoid(chosen - rejected - margin)))
    show("centring", "c (s_w + s_l)²", center * (chosen + rejected) ** 2)
    agree(full, bradley_terry_loss(*pair, margin=margin, center_coef=center)[0].item())
    print("\na right answer and a wrong one, both with score 1\n")
    right, wrong = -math.log(sigmoid(1.0)), -math.log(sigmoid(-1.0))
    show("right", "−log σ(1)", right)
    show("wrong", "−log σ(−1)", wrong)
    show("loss", "mean", (right + wrong) / 2)
    agree((right + wrong) / 2, outcome_loss(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]))[0].item())


if __name__ == "__main__":
    walk_through()
