"""Estimates of KL(π‖π_ref) from tokens sampled by π, and what their gradients do.

With r = π_ref(y) / π(y) for a token y sampled from π:

    k1 = −log r                    unbiased, high variance, can be negative
    k2 = ½ (log r)²                biased, low variance
    k3 = r − 1 − log r             unbiased, low variance, never negative

Source: Schulman, "Approximating KL divergence", 2020 (joschu.net/blog/kl-approx.html); k3 is GRPO's (arXiv 2402.03300,
eq. 4).

A good estimate of a *value* need not be a good *loss*: the gradient must also account for the fact that the samples
come from π. Of one token, enumerated over three actions (tests/losses/test_kl.py), the expected gradient on policy is
that of:

    estimator as a loss           value it estimates     direction its gradient descends
    k1                            KL(π‖π_ref)            nothing: expected gradient 0 (it only adds noise)
    k2                            –                      KL(π‖π_ref)
    k3                            KL(π‖π_ref)            KL(π_ref‖π): the other direction
    k3_is = ρ·k3                  KL(π‖π_ref)            KL(π‖π_ref)        ρ = π / π_old, = 1 in value on policy

So k3 is what to *report*, and k3_is what to *train with*. k1 belongs in the reward (PPO), never in the loss.

An answer has many tokens, and there the table holds token by token only: Σ_t ρ_t·k3_t differentiates the KL of the
*next-token* distributions at the states s_t that were visited, as if it did not matter that the policy chose these
states. The KL of the whole answer has one more term, for a token also moves the KL of everything that follows it:

    in the loss      E Σ_t ∇log π(y_t|s_t) · k1_t               = E Σ_t ∇KL(π(·|s_t)‖π_ref(·|s_t)), s_t held fixed
    of the answer    E Σ_t ∇log π(y_t|s_t) · Σ_{u ≥ t} k1_u     = ∇KL(π(y|x)‖π_ref(y|x))

The second is what a KL paid in the reward gives (losses/gae.py, with γ = 1 and the rewards-to-go). For the last token
they are equal, for earlier ones they may even point apart (tests/losses/test_kl_of_an_answer.py: two tokens,
enumerated). Both pull towards the reference; they are two penalties, not one in two places. Off policy ρ_t corrects the
token, not the tokens before it: the states stay those that the older policy visited.

A common mistake is the ratio upside down, exp(log π − log π_ref): under samples from π that estimates χ²(π‖π_ref) − KL.

>>> import torch
>>> logps, ref_logps = torch.tensor([[-1.0]]), torch.tensor([[-1.5]])      # log r = −0.5
>>> [round(k(logps, ref_logps).item(), 6) for k in (k1, k2, k3)]           # 0.5, 0.125, e^−0.5 − 1 + 0.5
[0.5, 0.125, 0.106531]
>>> round(k3_is(logps, ref_logps, torch.tensor([[-1.2]])).item(), 6)       # e^0.2 · 0.106531
0.130117
"""

import torch
from torch import Tensor

from losses.door import Metrics, at_least_float32, same_shape


def k1(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """log π − log π_ref: [B, T], [B, T] -> [B, T]. The reference carries no gradient."""
    return -_log_ratio(logps, ref_logps)


def k2(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """½ (log π − log π_ref)²: [B, T], [B, T] -> [B, T]."""
    return 0.5 * _log_ratio(logps, ref_logps).square()


def k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """r − 1 − log r with r = π_ref / π: [B, T], [B, T] -> [B, T], never negative."""
    log_r = _log_ratio(logps, ref_logps)
    return torch.expm1(log_r) - log_r  # expm1: e^x − 1 without the cancellation near x = 0


def k3_is(logps: Tensor, ref_logps: Tensor, old_logps: Tensor) -> Tensor:
    """ρ · k3 with ρ = exp(logps − old_logps), *with* gradient: three [B, T] -> [B, T]. old_logps: of the sampling
    policy. Each token's own KL at the state it was sampled in, not its part in the KL of the answer."""
    same_shape("B T", {"logps": logps, "old_logps": old_logps})
    ratio = torch.exp(at_least_float32(logps) - at_least_float32(old_logps).detach())
    return ratio * k3(logps, ref_logps)


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(π‖π_ref) = Σ_v π(v) (log π(v) − log π_ref(v)) at every position: two [B, S, V] -> [B, S] (no shift), nats."""
    same_shape("B S V", {"logits": logits, "ref_logits": ref_logits})
    logps = torch.log_softmax(at_least_float32(logits), dim=-1)
    ref_logps = torch.log_softmax(at_least_float32(ref_logits), dim=-1).detach()
    possible = logps > float("-inf")  # an entry with π(v) = 0 adds nothing, whatever the reference says of it
    return (logps.exp() * torch.where(possible, logps - ref_logps, 0.0)).sum(dim=-1)


def kl_metrics(logps: Tensor, ref_logps: Tensor, active: Tensor) -> Metrics:
    """What a loop watches, as (sum, count) over the active tokens: kl (k3, never negative) and kl_k1 (unbiased, far
    below 0 only where something is wrong). All [B, T]; the log-probs must be 0 (or equal) where inactive."""
    count = active.sum()
    return {"kl": (k3(logps, ref_logps).detach().sum(), count), "kl_k1": (k1(logps, ref_logps).detach().sum(), count)}


def adapted_coef(coef: float, kl: float, target: float) -> float:
    """The KL coefficient of the next rollout, steered towards a target KL: by a tenth of the relative error, at most 2
    %.

    Ziegler et al. 2019, arXiv 1909.08593, eq. 4."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + 0.1 * error)


def _log_ratio(logps: Tensor, ref_logps: Tensor) -> Tensor:
    assert logps.shape == ref_logps.shape, f"logps {list(logps.shape)} and ref_logps {list(ref_logps.shape)} differ"
    return at_least_float32(ref_logps).detach() - at_least_float32(logps)


def walk_through() -> None:
    """The docstring's example in plain Python floats, then the three-action enumeration of tests/losses/test_kl.py."""
    import math

    from losses.walk import agree, show

    logp, ref, old = -1.0, -1.5, -1.2
    print("one token, sampled from π: log π = −1, log π_ref = −1.5; its sampling policy gave it −1.2\n")
    log_r = ref - logp
    values = [-log_r, 0.5 * log_r**2, math.exp(log_r) - 1 - log_r]
    ratio = math.exp(logp - old)
    show("log r", "log π_ref − log π", log_r)
    show("k1", "−log r", values[0])
    show("k2", "½ (log r)²", values[1])
    show("k3", "r − 1 − log r", values[2])
    show("ρ", "π / π_old = exp(−1 + 1.2)", ratio)
    show("k3_is", "ρ · k3", ratio * values[2])
    x, y, z = (torch.tensor([[v]]) for v in (logp, ref, old))
    agree([*values, ratio * values[2]], [k1(x, y).item(), k2(x, y).item(), k3(x, y).item(), k3_is(x, y, z).item()])

    theta, reference = [0.0, 1.0, -1.0], [0.2, 0.3, 0.5]
    print("\nthree actions, θ = [0, 1, −1], ref = [.2, .3, .5]: every expectation under π is a sum of three terms\n")
    total = sum(map(math.exp, theta))
    probs = [math.exp(t) / total for t in theta]
    kl = sum(p * math.log(p / q) for p, q in zip(probs, reference, strict=True))
    show("π", "softmax(θ)", probs)
    show("KL(π‖π_ref)", "Σ π log(π / π_ref)", kl)
    show("E[k1]", "Σ π · k1", sum(p * math.log(p / q) for p, q in zip(probs, reference, strict=True)))
    show("E[k3]", "Σ π · k3", sum(p * (q / p - 1 + math.log(p / q)) for p, q in zip(probs, reference, strict=True)))
    agree(kl, exact_kl(torch.tensor([[theta]]), torch.tensor([[reference]]).log()).item())


if __name__ == "__main__":
    walk_through()
