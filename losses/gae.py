"""From the score of an answer to advantages token by token, for PPO, with a learned value V_t of the state before each
token.

    rewards          r_t = −β (log π(o_t) − log π_ref(o_t)), and the score of the whole answer added at its last token
    GAE              δ_t = r_t + γ V_{t+1} − V_t,   A_t = δ_t + γλ A_{t+1},   return R_t = A_t + V_t
    whitening        A ← (A − mean) / √(variance + 1e-8), over the completion tokens of the whole optimiser step

Sources: Schulman et al. 2015, arXiv 1506.02438, eq. 16 (GAE); Ziegler et al. 2019, arXiv 1909.08593, eq. 2 (KL in the
reward). After the last token V is 0 (the answer has ended) or `bootstrap` (it was cut off, and what would have come is
estimated).

Because a token is credited with the rewards that follow it, a KL that is paid here moves it by the KL of what follows,
too: with γ = 1, and λ = 1 or a critic that is right, the expected gradient is that of KL(π(y|x)‖π_ref(y|x)), the whole
answer's. With γ = 0 it is each token's own KL, the gradient of a KL in the loss (tests/losses/test_kl_of_an_answer.py).

>>> import torch
>>> r, v, active = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.5, 0.5]]), torch.tensor([[True] * 3])
>>> advantages, returns = gae(r, v, active, gamma=1.0, lam=0.95)      # δ = 0, 0, ½;  ½, .95 · ½, .95² · ½ from the end
>>> [round(x, 6) for x in advantages[0].tolist()], [round(x, 6) for x in returns[0].tolist()]
([0.45125, 0.475, 0.5], [0.95125, 0.975, 1.0])
>>> logps, ref = torch.tensor([[-1.0, -2.0, -1.0]]), torch.tensor([[-1.5, -2.0, -0.5]])       # k1 = .5, 0, −.5
>>> [round(x, 6) for x in kl_shaped_rewards(torch.tensor([1.0]), logps, ref, active, 0.1)[0].tolist()]
[-0.05, -0.0, 1.05]
>>> [round(x, 6) for x in whiten(torch.tensor([[1.0, 2.0, 3.0]]), active)[0].tolist()]             # √(2/3) = .816497
[-1.224745, 0.0, 1.224745]
"""

import torch
from torch import Tensor

from losses.door import at_least_float32, refuse_negative, same_shape

Stats = tuple[float, float, float]  # (sum, sum of squares, count)


def kl_shaped_rewards(
    scores: Tensor,  # [B] of the whole answers
    logps: Tensor,  # [B, T] log π of the policy that sampled them
    ref_logps: Tensor,  # [B, T] log π_ref
    active: Tensor,  # [B, T] bool
    kl_coef: float,  # β
) -> Tensor:
    """r [B, T], no gradient, 0 where inactive: every token pays β (log π − log π_ref), the score is added on the last
    active token of its row."""
    same_shape("B T", {"logps": logps, "ref_logps": ref_logps, "active": active})
    same_shape("B", {"scores": scores, "rows": logps[:, 0]})
    assert active.dtype == torch.bool, f"active must be bool, got {active.dtype}"
    refuse_negative("kl_coef", kl_coef, " (it would pay the policy for drifting)")
    k1 = torch.where(active, at_least_float32(logps) - at_least_float32(ref_logps), 0.0).detach()
    rewards = -kl_coef * k1  # [B, T], 0 where inactive
    last = (active * torch.arange(1, active.shape[1] + 1, device=active.device)).argmax(dim=1)  # [B]
    has_any = active.any(dim=1)
    score = torch.where(has_any, at_least_float32(scores).detach(), 0.0)
    return rewards.scatter_add(1, last[:, None], score[:, None])


def gae(
    rewards: Tensor,  # [B, T] r
    values: Tensor,  # [B, T] V: values[b, t] is the value of the state before token t
    active: Tensor,  # [B, T] bool: only active tokens are steps, what stands between or behind them may hold anything
    *,
    gamma: float = 1.0,  # γ
    lam: float = 0.95,  # λ
    bootstrap: Tensor | None = None,  # [B] the value after the last token, for answers that were cut off; None: 0
) -> tuple[Tensor, Tensor]:
    """(advantages A, returns R), both [B, T], no gradient, 0 where inactive."""
    same_shape("B T", {"rewards": rewards, "values": values, "active": active})
    assert active.dtype == torch.bool, f"active must be bool, got {active.dtype}"
    assert bootstrap is None or bootstrap.shape == rewards.shape[:1], f"bootstrap [B], got {list(bootstrap.shape)}"
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma and lam must lie in 0 … 1, got {gamma} and {lam}")
    rewards, values = (torch.where(active, at_least_float32(x), 0.0).detach() for x in (rewards, values))
    advantages = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[:, 0])  # A_{t+1}
    next_value = later if bootstrap is None else at_least_float32(bootstrap).detach()  # V_{t+1}
    for t in reversed(range(rewards.shape[1])):
        is_step = active[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]  # δ_t
        advantages[:, t] = torch.where(is_step, delta + gamma * lam * later, 0.0)
        later = torch.where(is_step, advantages[:, t], later)
        next_value = torch.where(is_step, values[:, t], next_value)
    return advantages, advantages + values


def whiten(
    values: Tensor,  # [B, T]
    active: Tensor,  # [B, T] bool
    *,
    stats: Stats | None = None,  # of the whole optimiser step, all micro-batches and processes; None: of these values
) -> Tensor:
    """[B, T] with mean 0 and variance 1 over the active ones, 0 elsewhere, no gradient."""
    same_shape("B T", {"values": values, "active": active})
    assert active.dtype == torch.bool, f"active must be bool, got {active.dtype}"
    values = torch.where(active, at_least_float32(values), 0.0).detach()
    total, squares, count = stats or whitening_stats(values, active)
    if count == 0:
        return values
    mean = total / count
    variance = max(squares / count - mean**2, 0.0)  # population variance
    return torch.where(active, (values - mean) / (variance + 1e-8) ** 0.5, 0.0)


def whitening_stats(values: Tensor, active: Tensor) -> Stats:
    """Of the active values, in float64: they add up over micro-batches and processes."""
    values = torch.where(active, values, 0.0).double()
    return values.sum().item(), values.square().sum().item(), float(active.sum())


def explained_variance(returns: Stats, errors: Stats) -> float:
    """1 − Var(R − V) / Var(R): 1 is a perfect critic, 0 one that knows only the mean, below 0 a harmful one.

    whitening_stats of the returns and of returns − values, over the whole step; 0 where the returns do not vary."""

    def variance(stats: Stats) -> float:
        total, squares, count = stats
        return squares / count - (total / count) ** 2

    spread = variance(returns)
    return 1 - variance(errors) / spread if spread > 1e-12 else 0.0


def walk_through() -> None:
    """The docstring's examples in plain Python floats."""
    from losses.walk import agree, show

    print("GAE: one answer of three tokens, rewards 0, 0, 1, values ½, γ = 1, λ = .95\n")
    reward, value, gamma, lam = [0.0, 0.0, 1.0], [0.5, 0.5, 0.5], 1.0, 0.95
    delta = [r + gamma * n - v for r, v, n in zip(reward, value, [*value[1:], 0.0], strict=True)]
    advantages, later = [0.0] * 3, 0.0
    for t in (2, 1, 0):
        advantages[t] = later = delta[t] + gamma * lam * later
    returns = [a + v for a, v in zip(advantages, value, strict=True)]
    show("δ", "r_t + γ V_{t+1} − V_t, V behind the end is 0", delta)
    show("advantages", "δ_t + γλ A_{t+1}, from the end", advantages)
    show("returns", "A_t + V_t", returns)
    active = torch.tensor([[True] * 3])
    got = gae(torch.tensor([reward]), torch.tensor([value]), active, gamma=gamma, lam=lam)
    agree([*advantages, *returns], [*got[0][0].tolist(), *got[1][0].tolist()])
    print("\nKL in the reward: score 1, β = 0.1\n")
    logps, ref = [-1.0, -2.0, -1.0], [-1.5, -2.0, -0.5]
    shaped = [-0.1 * (a - b) for a, b in zip(logps, ref, strict=True)]
    shaped[-1] += 1.0
    show("rewards", "−β (log π − log π_ref), + score at the last", shaped)
    tensors = torch.tensor([1.0]), torch.tensor([logps]), torch.tensor([ref]), active
    agree(shaped, kl_shaped_rewards(*tensors, 0.1)[0].tolist())
    print("\nwhitening: 1, 2, 3\n")
    spread = (((1 - 2) ** 2 + 0 + (3 - 2) ** 2) / 3 + 1e-8) ** 0.5
    show("√(variance + 1e-8)", "population variance 2/3", spread)
    show("whitened", "(A − mean) / that", [-1 / spread, 0.0, 1 / spread])
    agree([-1 / spread, 0.0, 1 / spread], whiten(torch.tensor([[1.0, 2.0, 3.0]]), active)[0].tolist())


if __name__ == "__main__":
    walk_through()
