"""Simple preference optimisation: DPO without a reference, on log-probs per token, with a margin to win by.

    L = −log σ( β · [ log π(y_w|x) / |y_w| − log π(y_l|x) / |y_l| ] − γ )

Source: Meng et al. 2024, arXiv 2405.14734, §2.3, "The SimPO objective" (w = chosen, l = rejected, |y| = completion
tokens). Kept: everything; no NLL term is added. Changed: per-pair weights in place of the mean.

β and γ: ours are β = 2 and γ = 0.5, the lower end of what the authors use (β 2 to 10, γ / β 0.1 to 0.8): a difference
of means is a fraction of a nat, so β has to be large. Some public code ships β = 0.1 with γ = 0.5, which asks for a
lead of γ / β = 5 nats *per token*, and adds an NLL term to survive it.

The mean takes the advantage of length away: under sums a long rejected answer is unlikely already, and a long chosen
one looks bad. And nothing holds the model to where it started but the learning rate: watch the chosen log-prob.

The gradient of one pair is −β (1 − σ(·)) (∇ log π(y_w) / |y_w| − ∇ log π(y_l) / |y_l|).

>>> import torch
>>> loss, metrics = simpo_loss(torch.tensor([-1.0]), torch.tensor([-1.5]), beta=2.0, gamma=0.5)
>>> round(loss.item(), 6)                                  # 2 (−1 + 1.5) − 0.5 = 0.5,  −log σ(0.5)
0.474077
>>> {name: round((total / count).item(), 6) for name, (total, count) in metrics.items()}
{'rewards_chosen': -2.0, 'rewards_rejected': -3.0, 'accuracy': 1.0, 'margin': 1.0}
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.door import Metrics, refuse_negative, same_shape, what_counts
from losses.margin import pair_metrics


def simpo_loss(
    chosen_mean_logps: Tensor,  # [B] log π(y_w|x) / |y_w|, nats per token
    rejected_mean_logps: Tensor,  # [B] log π(y_l|x) / |y_l|
    *,
    beta: float = 2.0,
    gamma: float = 0.5,  # γ, what the chosen answer has to lead by, in units of β · nats per token
    weights: Tensor
    | None = None,  # [B] 1 / pairs of the whole optimiser step; 0 leaves a pair out; None: the plain mean
) -> tuple[Tensor, Metrics]:
    """Σ w · −log σ(β (mean log π(y_w) − mean log π(y_l)) − γ) over the pairs -> (loss [], metrics).

    metrics, (sum, count) over the pairs that count: rewards_chosen, rewards_rejected (β · mean log π), accuracy (the
    chosen one leads, by however little), margin (the lead, before γ is taken off).
    """
    same_shape(
        "B", {"chosen_mean_logps": chosen_mean_logps, "rejected_mean_logps": rejected_mean_logps, "weights": weights}
    )
    refuse_negative("beta", beta)
    refuse_negative("gamma", gamma, " (it would let the chosen answer trail)")
    active, weights, chosen, rejected = what_counts(weights, chosen_mean_logps, rejected_mean_logps)

    rewards_chosen, rewards_rejected = beta * chosen, beta * rejected  # [B]
    margin = rewards_chosen - rewards_rejected
    per_pair = -logsigmoid(margin - gamma)
    loss = (weights * per_pair).sum()
    return loss, pair_metrics(rewards_chosen, rewards_rejected, active)


def walk_through() -> None:
    """The docstring's example in plain Python floats."""
    import math

    from losses.walk import agree, show

    chosen, rejected, beta, gamma = -1.0, -1.5, 2.0, 0.5
    print("mean log-prob per token: −1 (chosen), −1.5 (rejected); β = 2, γ = 0.5\n")
    margin = beta * (chosen - rejected)
    loss = math.log1p(math.exp(-(margin - gamma)))
    show("margin", "β (mean log π(y_w) − mean log π(y_l))", margin)
    show("beyond γ", "margin − γ", margin - gamma)
    show("loss", "−log σ(margin − γ)", loss)
    show("gradient", "∂L/∂(mean log π(y_w)) = −β (1 − σ(margin − γ))", -beta / (1 + math.exp(margin - gamma)))
    agree(loss, simpo_loss(torch.tensor([chosen]), torch.tensor([rejected]), beta=beta, gamma=gamma)[0].item())


if __name__ == "__main__":
    walk_through()
