"""From rewards to advantages: how much better an answer was than what the policy usually says to the same prompt.

Rows are laid out group by group: the `group_size` answers to prompt 0, then those to prompt 1, and so on.

    group-relative   A_i = (r_i − mean(r)) / (std(r) + ε)     GRPO, arXiv 2402.03300, §4.1.2
                     A_i =  r_i − mean(r)                      scale="none": Dr. GRPO, arXiv 2503.20783 (dividing by the
                                                               std makes very easy and very hard prompts louder)
    leave-one-out    A_i =  r_i − mean_{j≠i}(r_j)              RLOO, arXiv 2402.14740; = G / (G − 1) · (r_i − mean(r))

Kept: the group baseline. Said aloud, because public code differs: the standard deviation is the unbiased one (divide by
G − 1, as torch and the reference implementations do) unless unbiased=False, and ε = 1e-4. A group whose rewards are all
equal teaches nothing: its advantages are exactly 0, not rounding noise divided by ε.

>>> import torch
>>> rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])                # mean 1/2; std √(4 · ¼ / 3) = 0.577350
>>> [round(x, 6) for x in group_relative_advantages(rewards, 4).tolist()]
[0.865875, -0.865875, -0.865875, 0.865875]
>>> group_relative_advantages(rewards, 4, scale="none").tolist()
[0.5, -0.5, -0.5, 0.5]
>>> [round(x, 6) for x in leave_one_out_advantages(rewards, 4).tolist()]       # 1 − 1/3, 0 − 2/3
[0.666667, -0.666667, -0.666667, 0.666667]

Token by token, for PPO, with a learned value V_t of the state before each completion token:

    rewards          r_t = −β (log π(o_t) − log π_ref(o_t)), and the score of the whole answer added at its last token
    GAE              δ_t = r_t + γ V_{t+1} − V_t,   A_t = δ_t + γλ A_{t+1},   return R_t = A_t + V_t
    whitening        A ← (A − mean) / √(variance + 1e-8), over the completion tokens of the whole optimiser step

Sources: Schulman et al. 2015, arXiv 1506.02438, eq. 16 (GAE); Ziegler et al. 2019, arXiv 1909.08593, eq. 2 (KL in the reward).
After the last token V is 0 (the answer has ended) or `bootstrap` (it was cut off, and what would have come is estimated).

>>> r, v, on = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.5, 0.5]]), torch.tensor([[True] * 3])
>>> advantages, returns = gae(r, v, on, gamma=1.0, lam=0.95)      # δ = 0, 0, ½;  ½, .95 · ½, .95² · ½ from the end
>>> [round(x, 6) for x in advantages[0].tolist()], [round(x, 6) for x in returns[0].tolist()]
([0.45125, 0.475, 0.5], [0.95125, 0.975, 1.0])
>>> logps, ref = torch.tensor([[-1.0, -2.0, -1.0]]), torch.tensor([[-1.5, -2.0, -0.5]])       # k1 = .5, 0, −.5
>>> [round(x, 6) for x in kl_shaped_rewards(torch.tensor([1.0]), logps, ref, on, 0.1)[0].tolist()]
[-0.05, -0.0, 1.05]
>>> [round(x, 6) for x in whiten(torch.tensor([[1.0, 2.0, 3.0]]), on)[0].tolist()]             # √(2/3) = .816497
[-1.224745, 0.0, 1.224745]
"""

import torch
from torch import Tensor

from losses.logprobs import at_least_float32


def group_relative_advantages(
    rewards: Tensor, group_size: int, *, scale: str = "std", unbiased: bool = True, eps: float = 1e-4
) -> Tensor:
    """rewards [N], N = prompts × group_size, group by group -> advantages [N]. scale: "std" or "none"."""
    if scale not in ("std", "none"):
        raise ValueError(f'scale must be "std" or "none", got {scale!r}')
    groups = _grouped(rewards, group_size)  # [prompts, G]
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if scale == "std":
        advantages = advantages / (groups.std(dim=1, keepdim=True, correction=int(unbiased)) + eps)
    return torch.where(_all_equal(groups), 0.0, advantages).flatten()


def leave_one_out_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """rewards [N], group by group -> advantages [N]: the reward minus the mean reward of the *other* answers."""
    groups = _grouped(rewards, group_size)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    return torch.where(_all_equal(groups), 0.0, groups - others).flatten()


def kl_shaped_rewards(scores: Tensor, logps: Tensor, ref_logps: Tensor, active: Tensor, kl_coef: float) -> Tensor:
    """scores [B] of whole answers; logps, ref_logps, active (bool) [B, T] -> rewards [B, T], no gradient, 0 where inactive.

    Every token pays kl_coef · (log π − log π_ref); the score is added on the last active token of its row."""
    assert logps.ndim == 2 and ref_logps.shape == active.shape == logps.shape and scores.shape == logps.shape[:1], (
        f"scores [B], three [B, T], got {[list(x.shape) for x in (scores, logps, ref_logps, active)]}"
    )
    assert active.dtype == torch.bool, f"active must be bool, got {active.dtype}"
    if kl_coef < 0:
        raise ValueError(f"kl_coef must not be negative (it would pay the policy for drifting), got {kl_coef}")
    k1 = torch.where(active, at_least_float32(logps) - at_least_float32(ref_logps), 0.0).detach()
    rewards = -kl_coef * k1  # [B, T], 0 where inactive
    last = (active * torch.arange(1, active.shape[1] + 1, device=active.device)).argmax(dim=1)  # [B]
    has_any = active.any(dim=1)
    score = torch.where(has_any, at_least_float32(scores).detach(), 0.0)
    return rewards.scatter_add(1, last[:, None], score[:, None])


def gae(
    rewards: Tensor,
    values: Tensor,
    active: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """rewards, values, active (bool) [B, T] -> (advantages, returns), both [B, T], no gradient, 0 where inactive.

    values[b, t] is the value of the state before token t. Only active tokens are steps: what stands between or behind them
    may hold anything. bootstrap [B]: the value after the last token, for answers that were cut off; None is 0."""
    assert rewards.ndim == 2 and values.shape == active.shape == rewards.shape, (
        f"rewards, values, active [B, T], got {[list(x.shape) for x in (rewards, values, active)]}"
    )
    assert active.dtype == torch.bool, f"active must be bool, got {active.dtype}"
    assert bootstrap is None or bootstrap.shape == rewards.shape[:1], f"bootstrap [B], got {list(bootstrap.shape)}"
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma and lam must lie in 0 … 1, got {gamma} and {lam}")
    rewards, values = (torch.where(active, at_least_float32(x), 0.0).detach() for x in (rewards, values))
    advantages = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[:, 0])  # A_{t+1}
    next_value = later if bootstrap is None else at_least_float32(bootstrap).detach()  # V_{t+1}
    for t in reversed(range(rewards.shape[1])):
        on = active[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]  # δ_t
        advantages[:, t] = torch.where(on, delta + gamma * lam * later, 0.0)
        later = torch.where(on, advantages[:, t], later)
        next_value = torch.where(on, values[:, t], next_value)
    return advantages, advantages + values


def whiten(values: Tensor, active: Tensor, *, stats: tuple[float, float, float] | None = None) -> Tensor:
    """values, active (bool) [B, T] -> [B, T] with mean 0 and variance 1 over the active ones, 0 elsewhere, no gradient.

    stats: (sum, sum of squares, count) over the whole optimiser step, all micro-batches and processes; None: of these values."""
    assert values.ndim == 2 and active.shape == values.shape, (
        f"values and active [B, T], got {list(values.shape)} and {list(active.shape)}"
    )
    assert active.dtype == torch.bool, f"active must be bool, got {active.dtype}"
    values = torch.where(active, at_least_float32(values), 0.0).detach()
    total, squares, count = stats or whitening_stats(values, active)
    if count == 0:
        return values
    mean = total / count
    variance = max(squares / count - mean**2, 0.0)  # population variance
    return torch.where(active, (values - mean) / (variance + 1e-8) ** 0.5, 0.0)


def whitening_stats(values: Tensor, active: Tensor) -> tuple[float, float, float]:
    """(sum, sum of squares, count) of the active values, in float64: they add up over micro-batches and processes."""
    values = torch.where(active, values, 0.0).double()
    return values.sum().item(), values.square().sum().item(), float(active.sum())


def _all_equal(groups: Tensor) -> Tensor:  # [prompts, G] -> [prompts, 1]
    return groups.amax(dim=1, keepdim=True) == groups.amin(dim=1, keepdim=True)


def _grouped(rewards: Tensor, group_size: int) -> Tensor:
    assert rewards.ndim == 1, f"rewards [N], got {list(rewards.shape)}"
    if group_size < 2:
        raise ValueError(f"group_size must be at least 2, got {group_size}: one answer has nothing to be compared with")
    if len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards do not make whole groups of {group_size}")
    rewards = at_least_float32(rewards).detach()
    if not torch.isfinite(rewards).all():
        raise ValueError(f"reward {int((~torch.isfinite(rewards)).nonzero()[0])} is not finite: {rewards.tolist()}")
    return rewards.view(-1, group_size)


def walk_through() -> None:
    """The docstring's example in plain Python floats: one group of four."""
    from losses.walk import agree, show

    rewards, n, eps = [1.0, 0.0, 0.0, 1.0], 4, 1e-4
    print("one prompt, four answers, rewards 1, 0, 0, 1\n")
    mean = sum(rewards) / n
    std = (sum((r - mean) ** 2 for r in rewards) / (n - 1)) ** 0.5
    group = [(r - mean) / (std + eps) for r in rewards]
    plain = [r - mean for r in rewards]
    loo = [r - (sum(rewards) - r) / (n - 1) for r in rewards]
    tensor = torch.tensor(rewards)
    show("mean", "Σ r / G", mean)
    show("std", "√(Σ (r − mean)² / (G − 1))", std)
    show("group-relative", "(r − mean) / (std + 1e-4)", group)
    agree(group, group_relative_advantages(tensor, 4).tolist())
    show("without the std", "r − mean   (Dr. GRPO)", plain)
    agree(plain, group_relative_advantages(tensor, 4, scale="none").tolist())
    show("leave-one-out", "r − mean of the other three", loo)
    agree(loo, leave_one_out_advantages(tensor, 4).tolist())

    print("\nGAE: one answer of three tokens, rewards 0, 0, 1, values ½, γ = 1, λ = .95\n")
    reward, value, gamma, lam = [0.0, 0.0, 1.0], [0.5, 0.5, 0.5], 1.0, 0.95
    delta = [r + gamma * n - v for r, v, n in zip(reward, value, [*value[1:], 0.0], strict=True)]
    advantages, later = [0.0] * 3, 0.0
    for t in (2, 1, 0):
        advantages[t] = later = delta[t] + gamma * lam * later
    returns = [a + v for a, v in zip(advantages, value, strict=True)]
    show("δ", "r_t + γ V_{t+1} − V_t, V behind the end is 0", delta)
    show("advantages", "δ_t + γλ A_{t+1}, from the end", advantages)
    show("returns", "A_t + V_t", returns)
    on = torch.tensor([[True] * 3])
    got = gae(torch.tensor([reward]), torch.tensor([value]), on, gamma=gamma, lam=lam)
    agree([*advantages, *returns], [*got[0][0].tolist(), *got[1][0].tolist()])
    print("\nKL in the reward: score 1, β = 0.1\n")
    logps, ref = [-1.0, -2.0, -1.0], [-1.5, -2.0, -0.5]
    shaped = [-0.1 * (a - b) for a, b in zip(logps, ref, strict=True)]
    shaped[-1] += 1.0
    show("rewards", "−β (log π − log π_ref), + score at the last", shaped)
    tensors = torch.tensor([1.0]), torch.tensor([logps]), torch.tensor([ref]), on
    agree(shaped, kl_shaped_rewards(*tensors, 0.1)[0].tolist())
    print("\nwhitening: 1, 2, 3\n")
    spread = (((1 - 2) ** 2 + 0 + (3 - 2) ** 2) / 3 + 1e-8) ** 0.5
    show("√(variance + 1e-8)", "population variance 2/3", spread)
    show("whitened", "(A − mean) / that", [-1 / spread, 0.0, 1 / spread])
    agree([-1 / spread, 0.0, 1 / spread], whiten(torch.tensor([[1.0, 2.0, 3.0]]), on)[0].tolist())


if __name__ == "__main__":
    walk_through()
