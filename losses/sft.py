"""Supervised fine-tuning: cross-entropy on the completion only; and dynamic fine-tuning, which trusts likely tokens.

    L(θ) = − Σ_i Σ_t w[i, t] · log π_θ(y[i, t] | y[i, <t])          w = 0 on the prompt and the padding
    DFT    − Σ_i Σ_t w[i, t] · sg(p) · log p                        p = π_θ(y[i, t] | y[i, <t]), sg: no gradient

Source: maximum likelihood on demonstrations, as in InstructGPT's SFT (Ouyang et al. 2022, arXiv 2203.02155, §3.5);
scoring the completion only is common practice. DFT: Wu et al. 2025, arXiv 2508.05629, §3. Kept: everything. Changed: no
mean is taken here, the weights carry it (losses/weights.py).

The gradient of log p is ∇p / p: a token that the model finds unlikely pulls 1/p times as hard. DFT multiplies by p,
which leaves ∇p: what the model finds absurd is all but left alone, so it sharpens what is half known and teaches
nothing new.

>>> import math, torch
>>> logps = torch.log(torch.tensor([[0.5, 0.25, 0.125]]))
>>> weights = torch.tensor([[0.0, 0.5, 0.5]])                    # the first token belongs to the prompt
>>> loss, metrics = completion_cross_entropy(logps, weights)
>>> round(loss.item(), 6)                                        # (log 4 + log 8) / 2 = 2.5 · log 2
1.732868
>>> round(dft_loss(logps, weights)[0].item(), 6)                 # (log 4 / 4 + log 8 / 8) / 2 = 7/16 · log 2
0.303252
"""

import torch
from torch import Tensor

from losses.door import Metrics, same_shape, what_counts


def completion_cross_entropy(
    logps: Tensor,  # [B, T] log π_θ of each token
    weights: Tensor,  # [B, T] w, exactly 0 where there is nothing to learn (losses/weights.py)
) -> tuple[Tensor, Metrics]:
    """Σ w · −log π -> (loss [], metrics). metrics: nll, −log π of the tokens as (sum, count), whatever the weights."""
    same_shape("B T", {"logps": logps, "weights": weights})
    active, weights, logps = what_counts(weights, logps)

    nll = -logps  # [B, T]
    loss = (weights * nll).sum()
    return loss, {"nll": (nll.detach().sum(), active.sum())}


def dft_loss(
    logps: Tensor,  # [B, T] log π_θ of each token
    weights: Tensor,  # [B, T] w, exactly 0 where there is nothing to learn
) -> tuple[Tensor, Metrics]:
    """Σ w · −sg(p) log p -> (loss [], metrics). metrics: nll as above, without the factor p."""
    same_shape("B T", {"logps": logps, "weights": weights})
    active, weights, logps = what_counts(weights, logps)

    trust = logps.detach().exp()  # p [B, T]
    possible = torch.where(trust > 0, logps, 0.0)  # p = 0: 0 · (−inf) would be NaN, the limit of p log p is 0
    loss = (weights * trust * -possible).sum()
    return loss, {"nll": (-logps.detach().sum(), active.sum())}


def walk_through() -> None:
    """The docstring's example in plain Python floats."""
    import math

    from losses.walk import agree, show

    probs, weights = [0.5, 0.25, 0.125], [0.0, 0.5, 0.5]
    print("three tokens with probabilities 1/2, 1/4, 1/8; the first belongs to the prompt, so its weight is 0\n")
    logps = [math.log(p) for p in probs]
    nll = [-x if w else 0.0 for x, w in zip(logps, weights, strict=True)]
    loss = sum(w * x for w, x in zip(weights, nll, strict=True))
    show("logps", "log π(y_t | y_<t)", logps)
    show("weights", "1 / 2 active tokens, 0 on the prompt", weights)
    show("nll", "−log π where the weight is not 0", nll)
    show("loss", "Σ w · nll", loss)
    agree(loss, completion_cross_entropy(torch.tensor([logps]), torch.tensor([weights]))[0].item())
    dynamic = sum(w * p * x for w, p, x in zip(weights, probs, nll, strict=True))
    show("dynamic (DFT)", "Σ w · p · nll, p without gradient", dynamic)
    agree(dynamic, dft_loss(torch.tensor([logps]), torch.tensor([weights]))[0].item())


if __name__ == "__main__":
    walk_through()
