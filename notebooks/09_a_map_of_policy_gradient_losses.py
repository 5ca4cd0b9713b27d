# %% [markdown]
# # 9 · A map of policy-gradient losses
#
# Every one of them says: make a sampled token likelier by as much as its answer was better than expected. They differ
# in four choices, and each choice is one picture:
#
# 1. **advantage**: how much better? (GRPO, Dr. GRPO, RLOO, MaxRL, the batch's scale)
# 2. **ratio**: how much does a token still count once the policy has moved away from what it sampled? (PPO and GRPO,
#    GSPO, CISPO)
# 3. **length**: who has how many votes?
# 4. **sampling**: what do groups cost that teach nothing?
#
# What they did to a model, on one task from one start: `docs/grpo_variants.md`.
#
# **What you need:** the README's set-up; notebook 4; half a minute. Open it with `make jupyter`, or run `python
# notebooks/09_a_map_of_policy_gradient_losses.py`, which needs no Jupyter (its pictures go to `outputs/notebooks/`).

# %%
import os
import sys

if not os.path.isdir("losses"):
    os.chdir("..")  # Jupyter begins in notebooks/
sys.path.insert(0, ".")
import matplotlib.pyplot as plt
import torch

from losses.advantages import (
    batch_advantages,
    batch_stats,
    group_relative_advantages,
    leave_one_out_advantages,
    max_rl_advantages,
)
from losses.cispo import cispo_loss
from losses.grpo import grpo_loss
from losses.gspo import gspo_loss
from losses.weights import step_total, token_weights
from notebooks import show

# %% [markdown]
# ## 1. How much better?
#
# A group of 8 answers of which k are right. **Predict:** under which of them does the one right answer of a hard
# problem (k = 1) weigh most? Under which is a problem loudest that is solved half of the time?

# %%
G = 8
KINDS = {
    "GRPO: over the group's std": lambda r: group_relative_advantages(r, G, scale="std"),
    "Dr. GRPO: minus the mean": lambda r: group_relative_advantages(r, G, scale="none"),
    "RLOO: minus the others' mean": lambda r: leave_one_out_advantages(r, G),
    "MaxRL: over the group's mean": lambda r: max_rl_advantages(r, G),
}


def group(k: int) -> torch.Tensor:
    return torch.tensor([1.0] * k + [0.0] * (G - k))


show.table(
    ["a right answer's advantage, a wrong one's", *(f"{k} of 8 right" for k in (1, 2, 4, 7))],
    [
        (name, *(f"{f(group(k))[0].item():+.2f}, {f(group(k))[-1].item():+.2f}" for k in (1, 2, 4, 7)))
        for name, f in KINDS.items()
    ],
)
fig, axes = plt.subplots(1, 2, figsize=(8.4, 2.6))
for name, f in KINDS.items():
    axes[0].plot(range(1, G), [f(group(k))[0].item() for k in range(1, G)], "o-", ms=3, lw=1.2, label=name)
    axes[1].plot(range(1, G), [f(group(k)).abs().sum().item() for k in range(1, G)], "o-", ms=3, lw=1.2)
axes[0].set(title="of a right answer", xlabel="right answers of 8")
axes[1].set(title="Σ |A| over the group: how loud a problem is", xlabel="right answers of 8")
axes[0].legend(fontsize=7)
plt.show()

# %% [markdown]
# * **GRPO**'s standard deviation makes the rare side of a group large: 2.5 for one right answer of 8, and −2.5 for one
#   wrong one.
# * **Dr. GRPO** leaves it out: an advantage is never above 1, and a problem is loudest when it is solved half the
#   time.
# * **RLOO** is Dr. GRPO times G/(G − 1), here 8/7: a constant, which Adam does not see.
# * **MaxRL** divides by the mean: the one right answer weighs 7, and problems that are nearly solved hardly speak.
#
# A group in which all answers have one reward is dead under all of them. **The batch's scale** (REINFORCE++-baseline)
# first takes the group's mean, then divides by the standard deviation over *all* rows of the step. **Predict:** what
# do dead groups in the batch do to the advantages of the living ones?

# %%
rows = []
for dead in (0, 1, 3, 7):
    rewards = torch.cat([group(2), torch.ones(dead * G)])
    a = batch_advantages(rewards, G, stats=batch_stats(rewards, G))
    rows.append((dead, a[0].item(), a[G - 1].item(), a[G:].abs().max().item() if dead else "–"))
show.table(["dead groups beside one with 2 of 8 right", "a right answer", "a wrong one", "in the dead groups"], rows)

# %% [markdown]
# They make them louder: the rows of a dead group are all 0, which lowers the standard deviation of the step.
#
# ## 2. What is left of a token when the policy has moved?
#
# After an update the policy gives a sampled token another probability; ρ = π/π_old. What counts is the *gradient*: by
# how much does ∇log π(token) enter? **Predict** the three curves for a good token (A = +1) and for a bad one (A = −1).
# Where are they 0?

# %%
LOG_RATIOS = torch.linspace(-1.5, 1.5, 121)


def weight_of_the_gradient(loss, advantage: float) -> torch.Tensor:
    """−∂L/∂log π of one-token answers, one for each ratio."""
    old = torch.full((len(LOG_RATIOS), 1), -1.0)
    logps = (old + LOG_RATIOS[:, None]).requires_grad_()
    out, _ = loss(logps, old, torch.full((len(LOG_RATIOS),), advantage), torch.ones_like(old))
    return -torch.autograd.grad(out, logps)[0][:, 0]


WAYS = {
    "PPO, GRPO: 0.2 / 0.2": lambda *x: grpo_loss(*x, clip_low=0.2, clip_high=0.2),
    "DAPO: 0.2 / 0.28": lambda *x: grpo_loss(*x, clip_low=0.2, clip_high=0.28),
    "CISPO: weight at most 1.28": lambda *x: cispo_loss(*x, clip_high=0.28),
    "GSPO (one token): 3e-4 / 4e-4": gspo_loss,
}
fig, axes = plt.subplots(1, 2, figsize=(8.6, 2.7))
for axis, advantage in zip(axes, (1.0, -1.0), strict=True):
    for name, loss in WAYS.items():
        axis.plot(LOG_RATIOS.exp(), weight_of_the_gradient(loss, advantage), lw=1.4, label=name)
    axis.set(title=f"A = {advantage:+.0f}", xlabel="ρ = π / π_old", ylabel="weight of ∇ log π" if advantage > 0 else "")
axes[0].legend(fontsize=7)
plt.show()

# %% [markdown]
# * **PPO and GRPO** give a token the weight ρA, and nothing once it has moved far enough in the direction it was
#   pushed: a good token above 1 + ε, a bad one below 1 − ε. Moved the *wrong* way, it keeps its full weight, also a
#   bad token of ρ = 4.
# * **DAPO** raises the upper end alone: rare good tokens (π_old = 0.01) may grow by more than a fifth per rollout.
# * **CISPO** cuts the *weight*, and never the token: every one still has a gradient.
# * **GSPO** is drawn here for an answer of one token, and would be absurd so: it is made for a *mean* over many
#   tokens, which stays near 1. Twelve tokens, one of which has jumped:

# %%
tokens = 12
jump = torch.linspace(0, 3, 61)
old = torch.full((len(jump), tokens), -1.0)
moved = torch.zeros(len(jump), tokens)
moved[:, 3] = jump
fig, axis = plt.subplots(figsize=(5.6, 2.6))
for name, loss in (
    ("GRPO: the token that jumped", lambda *x: grpo_loss(*x, clip_low=0.2, clip_high=0.2)),
    ("GSPO, clip 0.2: every token alike", lambda *x: gspo_loss(*x, clip_low=0.2, clip_high=0.2)),
    ("CISPO: the token that jumped", lambda *x: cispo_loss(*x, clip_high=4.0)),
):
    logps = (old + moved).requires_grad_()
    out, _ = loss(logps, old, torch.ones(len(jump)), torch.full_like(old, 1 / tokens))
    (g,) = torch.autograd.grad(out, logps)
    (line,) = axis.plot(jump.exp(), -tokens * g[:, 3], lw=1.4, label=name)
    axis.plot(jump.exp(), -tokens * g[:, 7], "--", lw=1, color=line.get_color())
axis.set(
    xlabel="ρ of the one token that has jumped",
    ylabel="weight of ∇ log π",
    title="12 tokens, A = +1 (dashed: another token)",
)
axis.legend(fontsize=7)
plt.show()

# %% [markdown]
# GRPO drops the token and keeps the others; GSPO moves all twelve a little, and drops the *answer* once its mean has
# left the band; CISPO follows the token up to its bound of 5.
#
# ## 3. Who has how many votes?
#
# Two answers of one group, one right in 10 tokens, one wrong in 40. The weight of each token in the step, under the
# three weightings (`losses/weights.py`). **Predict:** in which of them does the wrong answer as a *whole* count as
# much as the right one?

# %%
active = torch.zeros(2, 40, dtype=torch.bool)
active[0, :10], active[1, :40] = True, True
rows = []
for how in ("token", "sequence", "constant"):
    w = token_weights(active, how, total=step_total([10, 40], how, longest=64))
    rows.append((how, w[0, 0].item(), w[1, 0].item(), w[0].sum().item(), w[1].sum().item()))
show.table(
    ["length_weighting", "a token of the short one", "of the long one", "the short answer", "the long one"], rows
)

# %% [markdown]
# * **token** (DAPO): every token one vote, so a long answer has many;
# * **sequence** (GRPO's paper): every answer one vote, so a token of a long wrong answer is punished *less*: being
#   wrong at length is cheap, and lengths grow;
# * **constant** (Dr. GRPO): as token, but not by how long the others of the step happen to be.
#
# ## 4. What dead groups cost
#
# With answers that are right with probability p, a group of G is dead with probability p^G + (1 − p)^G. Dynamic
# sampling asks further prompts until the step is full. **Predict:** how many times as many answers does it sample at p
# = 0.95 and G = 8?

# %%
p = torch.linspace(0.01, 0.99, 99)
fig, axis = plt.subplots(figsize=(5.4, 2.5))
for size in (4, 8, 16):
    alive = 1 - p**size - (1 - p) ** size
    axis.plot(p, 1 / alive, lw=1.4, label=f"G = {size}")
axis.set(ylim=(0.9, 8), xlabel="p, the same for every prompt", ylabel="answers sampled per answer used")
axis.legend(fontsize=7)
plt.show()
for at in (0.5, 0.8, 0.95):
    dead = at**8 + (1 - at) ** 8
    print(f"p = {at}: {dead:.2f} of the groups are dead, {1 / (1 - dead):.1f} times as many answers")

# %% [markdown]
# Three times as many, and the price rises just when a model has become good. (On the embedded model DAPO sampled 2.7
# to 2.8 times as many answers over its whole run: `docs/grpo_variants.md`.) Without it the step *shrinks*: the same
# learning rate on fewer groups that say something.
#
# ## Change one line, predict, run
#
# 1. Give CISPO a `clip_high` of 100 in section 2. Which loss that everybody knows is it then, with an importance
#    weight?
# 2. In section 1 take away a constant from all rewards (`group(k) - 0.5`). Which of the four change?
# 3. In section 3 let the short answer be the wrong one. Under which weighting does it matter which of the two is
#    wrong?
#
# <details><summary>Answers</summary>
#
# 1. REINFORCE, each token with its ratio as a weight that carries no gradient.
# 2. None of the first three: a constant is in the mean. MaxRL refuses them: it takes rewards of 0 and 1, since it
#    divides by their mean.
# 3. Under none: weights know nothing of rewards. It is the advantage that makes a token's small share of a long wrong
#    answer cheap.
# </details>
