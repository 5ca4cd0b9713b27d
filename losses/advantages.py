"""From rewards to advantages: how much better an answer was than what the policy usually says to the same prompt.

Rows are laid out group by group: the `group_size` answers to prompt 0, then those to prompt 1, and so on.

    group-relative   A_i = (r_i − mean(r)) / (std(r) + ε)     GRPO, arXiv 2402.03300, §4.1.2
                     A_i =  r_i − mean(r)                      scale="none": Dr. GRPO, arXiv 2503.20783 (dividing by the
                                                               std makes very easy and very hard prompts louder)
    leave-one-out    A_i =  r_i − mean_{j≠i}(r_j)              RLOO, arXiv 2402.14740; = G / (G − 1) · (r_i − mean(r))
    MaxRL            A_i = (r_i − mean(r)) / mean(r)          arXiv 2602.02710; rewards 0 or 1, 0 where none is right
    batch            A_i =  r_i − mean(r), over the std of the whole batch      REINFORCE++-baseline, arXiv 2501.03262

Kept: the group baseline. Stated, because public code differs: the standard deviation is the unbiased one (divide by
G − 1, as torch and the reference implementations do) unless unbiased=False, and ε = 1e-4. A group whose rewards are all
equal teaches nothing: its advantages are exactly 0, not rounding noise divided by ε.

What is divided by decides how loud a prompt is that is solved with probability p. Over the whole group, its right
answers pull with p (1 − p) where nothing is divided, with √(p (1 − p)) over the std, with 1 − p over the mean: MaxRL
climbs log p instead of p, and rare successes are the loudest. The batch's std is the same for all prompts.

>>> import torch
>>> rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])                # mean 1/2; std √(4 · ¼ / 3) = 0.577350
>>> [round(x, 6) for x in group_relative_advantages(rewards, 4).tolist()]
[0.865875, -0.865875, -0.865875, 0.865875]
>>> group_relative_advantages(rewards, 4, scale="none").tolist()
[0.5, -0.5, -0.5, 0.5]
>>> [round(x, 6) for x in leave_one_out_advantages(rewards, 4).tolist()]       # 1 − 1/3, 0 − 2/3
[0.666667, -0.666667, -0.666667, 0.666667]
>>> max_rl_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4).tolist()                    # mean ¼: ¾ / ¼ and −¼ / ¼
[3.0, -1.0, -1.0, -1.0]
>>> two = torch.tensor([1.0, 0.0, 4.0, 0.0])        # two groups of two: ±½ and ±2; variance (¼ + ¼ + 4 + 4) / 4 = 2.125
>>> [round(x, 6) for x in batch_advantages(two, 2).tolist()]                             # ½ / 1.457738, 2 / 1.457738
[0.342997, -0.342997, 1.371989, -1.371989]
"""

import torch
from torch import Tensor

from losses.door import at_least_float32
from losses.gae import Stats, gae, kl_shaped_rewards, whiten, whitening_stats  # noqa: F401  (asked for here, too)


def group_relative_advantages(
    rewards: Tensor,  # [N], N = prompts × group_size, group by group
    group_size: int,  # G
    *,
    scale: str = "std",  # or "none"
    unbiased: bool = True,
    eps: float = 1e-4,
) -> Tensor:
    """A [N]: the reward minus the group's mean, over the group's standard deviation."""
    if scale not in ("std", "none"):
        raise ValueError(f'scale must be "std" or "none", got {scale!r}')
    groups = _grouped(rewards, group_size)  # [prompts, G]
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if scale == "std":
        advantages = advantages / (groups.std(dim=1, keepdim=True, correction=int(unbiased)) + eps)
    return torch.where(_all_equal(groups), 0.0, advantages).flatten()


def leave_one_out_advantages(
    rewards: Tensor,  # [N], group by group
    group_size: int,
) -> Tensor:
    """A [N]: the reward minus the mean reward of the *other* answers of its group."""
    groups = _grouped(rewards, group_size)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    return torch.where(_all_equal(groups), 0.0, groups - others).flatten()


def max_rl_advantages(
    rewards: Tensor,  # [N] of 0 and 1, group by group
    group_size: int,
) -> Tensor:
    """A [N]: the reward minus the group's mean, over that mean; 0 where no answer of the group is right."""
    groups = _grouped(rewards, group_size)
    graded = groups[(groups != 0) & (groups != 1)]
    if len(graded):
        raise ValueError(f"MaxRL maximises the log of a success rate: rewards must be 0 or 1, got {graded[0].item():g}")
    mean = groups.mean(dim=1, keepdim=True)
    return torch.where(_all_equal(groups), 0.0, (groups - mean) / mean).flatten()


def batch_advantages(
    rewards: Tensor,  # [N], group by group
    group_size: int,
    *,
    stats: Stats | None = None,  # batch_stats of the whole rollout, summed over all processes; None: of these rewards
) -> Tensor:
    """A [N]: the reward minus the group's mean, over the standard deviation (population) of these over the batch."""
    groups = _grouped(rewards, group_size)
    total, squares, count = stats or batch_stats(rewards, group_size)
    if count == 0:
        return groups.flatten()
    variance = max(squares / count - (total / count) ** 2, 0.0)
    centred = groups - groups.mean(dim=1, keepdim=True)  # its mean over the batch is 0: there is nothing to subtract
    return torch.where(_all_equal(groups), 0.0, centred / (variance + 1e-8) ** 0.5).flatten()


def batch_stats(rewards: Tensor, group_size: int) -> Stats:
    """(sum, sum of squares, count) of reward minus the group's mean, in float64: they add up over processes."""
    groups = _grouped(rewards, group_size).double()
    centred = groups - groups.mean(dim=1, keepdim=True)
    return centred.sum().item(), centred.square().sum().item(), float(groups.numel())


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

    print("\none of four right, and two groups of two with rewards 1, 0 and 4, 0\n")
    rare = [(r - 0.25) / 0.25 for r in (1.0, 0.0, 0.0, 0.0)]
    show("MaxRL", "(r − mean) / mean, mean = ¼", rare)
    agree(rare, max_rl_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4).tolist())
    centred = [1 - 0.5, 0 - 0.5, 4 - 2, 0 - 2]
    spread = (sum(c**2 for c in centred) / 4) ** 0.5
    show("centred", "r − mean of its own group", centred)
    show("std", "√(Σ centred² / N) over both groups", spread)
    batch = [c / spread for c in centred]
    show("batch", "centred / std", batch)
    agree(batch, batch_advantages(torch.tensor([1.0, 0.0, 4.0, 0.0]), 2).tolist())


if __name__ == "__main__":
    walk_through()
