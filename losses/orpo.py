"""Odds-ratio preference optimisation: preferences while fine-tuning, without a reference.

    L = NLL(y_w) + λ · L_OR        L_OR = −log σ( logit p_w − logit p_l )        logit p = log p − log(1 − p)

Source: Hong et al. 2024, arXiv 2403.07691, eq. 4 (the odds), eq. 7 (the odds ratio) and §4 (w = chosen, l = rejected).
log p is the *mean* token log-prob of an answer. Here stands L_OR; loops/simpo.py adds the NLL and λ (0.1 in the paper).
Kept: everything. Changed: per-pair weights in place of the mean; the NLL is taken over the answer (the authors' code
takes it over prompt and answer).

The odds ratio pulls less than the ratio of probabilities: the gradient of logit p is 1 / (1 − p), close to 1 for an
answer that is unlikely, so the rejected answer is not chased down for ever; what teaches is the NLL.

In float32, log(1 − p) for p → 1: `log1p(−exp(x))` is −inf from x = −6e-8 on, `log(−expm1(x))` is right as far as x =
log p itself can be told from 0. An answer of p = 1 is taken to be the last number before it, so its odds are finite.

>>> import math, torch
>>> loss, metrics = orpo_loss(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())
>>> round(loss.item(), 6)                          # odds 1 and 1/3: −log σ(log 3) = −log 0.75
0.287682
>>> round(math.log(2) + 0.1 * loss.item(), 6)      # with the NLL of p = 0.5 and λ = 0.1
0.721915
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.door import Metrics, same_shape, what_counts
from losses.margin import pair_metrics


def orpo_loss(
    chosen_mean_logps: Tensor,  # [B] log p_w: mean log-prob per token of the chosen completion
    rejected_mean_logps: Tensor,  # [B] log p_l
    *,
    weights: Tensor
    | None = None,  # [B] 1 / pairs of the whole optimiser step; 0 leaves a pair out; None: the plain mean
) -> tuple[Tensor, Metrics]:
    """Σ w · −log σ(logit p_w − logit p_l) over the pairs -> (loss [], metrics): the odds-ratio term alone.

    metrics, (sum, count) over the pairs that count: rewards_chosen, rewards_rejected (the log-odds), accuracy, margin
    (the log of the odds ratio). ValueError for a mean log-prob above 0.
    """
    same_shape(
        "B", {"chosen_mean_logps": chosen_mean_logps, "rejected_mean_logps": rejected_mean_logps, "weights": weights}
    )
    active, weights, chosen, rejected = what_counts(weights, chosen_mean_logps, rejected_mean_logps)
    if ((chosen > 0) | (rejected > 0)).any():
        raise ValueError("a mean log-prob above 0 is no log-prob: log p ≤ 0")

    log_odds_chosen, log_odds_rejected = (torch.where(active, log_odds(x), 0.0) for x in (chosen, rejected))  # [B]
    per_pair = -logsigmoid(log_odds_chosen - log_odds_rejected)
    loss = (weights * per_pair).sum()
    return loss, pair_metrics(log_odds_chosen, log_odds_rejected, active)


def log_odds(log_p: Tensor) -> Tensor:
    """log p − log(1 − p), finite for every p in 0 … 1: any shape, nats."""
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).tiny)
    return log_p - torch.log(-torch.expm1(log_p))


def walk_through() -> None:
    """The docstring's example in plain Python floats."""
    import math

    from losses.walk import agree, show

    p_w, p_l, weight = 0.5, 0.25, 0.1
    print("two answers, with mean token probabilities 0.5 (chosen) and 0.25 (rejected); λ = 0.1\n")
    odds_w, odds_l = p_w / (1 - p_w), p_l / (1 - p_l)
    ratio = -math.log(1 / (1 + odds_l / odds_w))
    show("odds", "p / (1 − p)", [odds_w, odds_l])
    show("log odds ratio", "log(odds_w / odds_l)", math.log(odds_w / odds_l))
    show("L_OR", "−log σ(log odds ratio)", ratio)
    agree(ratio, orpo_loss(torch.tensor([math.log(p_w)]), torch.tensor([math.log(p_l)]))[0].item())
    show("NLL", "−log p_w", -math.log(p_w))
    show("L", "NLL + λ L_OR", -math.log(p_w) + weight * ratio)


if __name__ == "__main__":
    walk_through()
