# %% [markdown]
# # 8 · A map of preference losses
#
# DPO, IPO, robust DPO, DPOP, APO, SimPO, ORPO, KTO: each a file in `losses/` of a page, and each with a paper in which
# it wins. This notebook asks four questions of all of them, with numbers small enough to check:
#
# 1. how hard does each pull on the chosen and on the rejected answer, and when does it let go?
# 2. who lets the chosen answer's probability *fall*?
# 3. what does the length of an answer do?
# 4. what is there to learn from single answers, without pairs?
#
# What they did to a model, on one task from one start, stands in `docs/losses.md`.
#
# **What you need:** the README's set-up; notebook 2; half a minute. Open it with `make jupyter`, or run `python
# notebooks/08_a_map_of_preference_losses.py`, which needs no Jupyter (its pictures go to `outputs/notebooks/`).

# %%
import os
import sys

if not os.path.isdir("losses"):
    os.chdir("..")  # Jupyter begins in notebooks/
sys.path.insert(0, ".")
import matplotlib.pyplot as plt
import torch

from losses.apo import apo_down_loss, apo_zero_loss
from losses.dpo import dpo_loss
from losses.dpop import dpop_loss
from losses.ipo import ipo_loss
from losses.kto import kto_loss
from losses.orpo import orpo_loss
from losses.robust_dpo import robust_dpo_loss
from losses.simpo import simpo_loss
from notebooks import show

ON_FOUR = {  # losses of the same four numbers: log-probs of both answers, under the policy and the reference
    "DPO": lambda *x: dpo_loss(*x, beta=0.1)[0],
    "cDPO, 10 % wrong": lambda *x: dpo_loss(*x, beta=0.1, label_smoothing=0.1)[0],
    "robust, 10 % wrong": lambda *x: robust_dpo_loss(*x, beta=0.1, label_smoothing=0.1)[0],
    "IPO": lambda *x: ipo_loss(*x, beta=0.1)[0],
    "DPOP": lambda *x: dpop_loss(*x, beta=0.1, penalty=5.0)[0],
    "APO zero": lambda *x: apo_zero_loss(*x, beta=0.1)[0],
    "APO down": lambda *x: apo_down_loss(*x, beta=0.1)[0],
}


def pulls(loss, r_w: float, r_l: float) -> tuple[float, float]:
    """(pull on the chosen, pull on the rejected answer's log-prob): minus the gradient, so + is upwards."""
    sides = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (r_w, r_l)]
    zero = torch.zeros(1, dtype=torch.float64)  # the reference: r is then the policy's own log-prob
    return tuple(-g.item() for g in torch.autograd.grad(loss(*sides, zero, zero), sides))


# %% [markdown]
# ## 1. How hard, and until when
#
# r_w and r_l are how far the two answers have moved from the reference, in nats; h = r_w − r_l. **Predict:** at the
# start all margins are 0. Which losses pull the chosen answer up as hard as they push the rejected one down? Which of
# them still pulls when the pair is 20 nats apart, and which pulls *back*?

# %%
places = {"start: 0, 0": (0.0, 0.0), "apart: +10, −10": (10.0, -10.0), "wrong: −10, +10": (-10.0, 10.0), "both fallen: −10, −30": (-10.0, -30.0)}  # fmt: skip
show.table(
    ["pull on (chosen, rejected)", *places],
    [
        (name, *("{:+.3f}, {:+.3f}".format(*(x + 0.0 for x in pulls(loss, *at))) for at in places.values()))
        for name, loss in ON_FOUR.items()
    ],
)

# %% [markdown]
# * **DPO**'s two pulls are always the same size: it sees the difference alone. It fades as the pair comes apart (β (1
#   − σ)), and never changes sign. A pair whose two answers have both *fallen* by 10 nats and more looks to it like one
#   that is learned.
# * **cDPO** pulls back once the margin says more than 90 %; **robust DPO** does not: it corrects for the wrong labels
#   on average (and so its loss may be negative).
# * **IPO** pulls in proportion to what is missing to h = 1/(2β) = 5, and pulls back beyond.
# * **DPOP** adds a pull on the chosen answer, only where that has fallen.
# * **APO** pulls on each side by its own: *zero* wants the chosen up and the rejected down, *down* wants both down,
#   the rejected one further (for pairs whose chosen answer is worse than what the model says by itself).
#
# The same as curves, along a pair that comes apart evenly (r_w = h/2, r_l = −h/2):

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.6, 2.8), sharex=True)
steps = torch.linspace(-30, 40, 141).tolist()
for name, loss in ON_FOUR.items():
    drawn = [pulls(loss, h / 2, -h / 2) for h in steps]
    scale = 0.02 if name == "IPO" else 1  # its pull has no bound
    for axis, side in zip(axes, (0, 1), strict=True):
        axis.plot(steps, [scale * pull[side] for pull in drawn], lw=1.3, label=name + " × 0.02" * (name == "IPO"))
for axis, side in zip(axes, ("chosen", "rejected"), strict=True):
    axis.axhline(0, color="0.6", lw=0.8)
    axis.set(
        title=f"pull on the {side} answer", xlabel="h, nats", ylim=(-0.22, 0.62) if side == "chosen" else (-0.22, 0.12)
    )
axes[0].legend(fontsize=7)
plt.show()

# %% [markdown]
# ## 2. Who lets the chosen answer fall?
#
# The pulls say what happens to a *free* number. But answers share parameters, and probabilities sum to 1. The smallest
# world in which that bites: three answers with the scores φ · θ, two parameters. Chosen and rejected answer are alike
# (both point along the first parameter), they differ in the second, and a third answer, which no pair mentions, points
# along that one.
#
# **Predict:** DPO is to raise the chosen answer above the rejected one. What happens to the chosen answer's own
# probability?

# %%
FEATURES = torch.tensor([[1.0, 0.2], [1.0, -0.2], [0.0, 1.0]], dtype=torch.float64)  # chosen, rejected, the third
START = torch.tensor([1.0, 0.0], dtype=torch.float64)


def descend(loss, steps: int = 400, rate: float = 0.3, sft: float = 0.0):
    """The three log-probs along gradient descent on `loss` (and sft times the chosen answer's NLL)."""
    theta, reference = START.clone().requires_grad_(), (FEATURES @ START).log_softmax(0)
    way = []
    for _ in range(steps):
        logps = (FEATURES @ theta).log_softmax(0)
        way.append(logps.detach())
        value = loss(logps[:1], logps[1:2], reference[:1], reference[1:2]) - sft * logps[0]
        (push,) = torch.autograd.grad(value, theta)
        theta = (theta - rate * push).detach().requires_grad_()
    return torch.stack(way)


cases = {
    "DPO": (ON_FOUR["DPO"], 0.0),
    "DPO + 0.2 NLL": (ON_FOUR["DPO"], 0.2),
    "IPO": (lambda *x: 0.02 * ON_FOUR["IPO"](*x), 0.0),
    "DPOP": (ON_FOUR["DPOP"], 0.0),
    "APO zero": (ON_FOUR["APO zero"], 0.0),
    "APO down": (ON_FOUR["APO down"], 0.0),
}
ways = {name: descend(loss, sft=sft) for name, (loss, sft) in cases.items()}
show.table(
    ["after 400 steps", "p(chosen)", "p(rejected)", "p(the third)", "h"],
    [("start", *ways["DPO"][0].exp().tolist(), 0.0)]
    + [
        (name, *way[-1].exp().tolist(), (way[-1] - way[0])[0].item() - (way[-1] - way[0])[1].item())
        for name, way in ways.items()
    ],
)
fig, axes = plt.subplots(1, len(ways), figsize=(11, 2.2), sharey=True)
for axis, (name, way) in zip(axes, ways.items(), strict=True):
    for column, (side, style) in enumerate((("chosen", "C2-"), ("rejected", "C3-"), ("the third", "C7--"))):
        axis.plot(way[:, column].exp(), style, lw=1.3, label=side)
    axis.set(title=name, xlabel="step", ylim=(-0.03, 1.03))
axes[0].legend(fontsize=7)
plt.show()

# %% [markdown]
# The margin rises under every loss, and under **DPO** (and IPO, which sees the same difference) the chosen answer's
# probability falls: the direction that tells the two apart belongs more to the third answer than to either. That is
# *likelihood displacement*, and why `chosen_logps_per_token` is the first curve to look at. What holds it up is what
# pulls on the chosen answer *itself*: the NLL term (`dpo.sft_weight`) and DPOP's penalty. APO zero lets it fall a
# little (its pull on the rejected answer moves the same two parameters), and **APO down** means it to fall.
#
# ## 3. What length does
#
# log π(y|x) is a sum, so long answers have large numbers. Two pairs, of 5 and of 50 tokens a side:
#
# **Predict:** IPO with β = 0.1 wants h = 5. Of sums, how much is that per token of each? Of means per token?

# %%
rows = []
for tokens in (5, 50):
    target = 1 / (2 * 0.1)
    for how, h in (("sums", target), ("means", target * tokens)):  # nats of the whole answer at which the loss is 0
        given = torch.tensor([h if how == "sums" else h / tokens], dtype=torch.float64)
        none = torch.zeros(1, dtype=torch.float64)
        rows.append((tokens, how, h, h / tokens, ipo_loss(given, none, none, none, beta=0.1)[0].item()))
show.table(["tokens", "log-probs as", "h of the whole answer", "per token", "loss there"], rows)

# %% [markdown]
# Of sums every answer has the same 5 nats to move, long or short: 1 nat a token, or 0.1. Of means every *token* has 5
# nats, so a long answer is asked to move by 250. Both are in public code under the one name, with the one β
# (`dpo.length_normalize` says which).
#
# SimPO has no reference and takes means, for a reason that three numbers show: a chosen answer of 20 tokens at −1.0
# each, a rejected one of 10 tokens at −1.2. What does a sum say of which is likelier?

# %%
chosen, rejected = (20, -1.0), (10, -1.2)
sums, means = [n * x for n, x in (chosen, rejected)], [x for _, x in (chosen, rejected)]
one = [torch.tensor([x], dtype=torch.float64) for x in means]
show.table(
    ["", "chosen", "rejected", "chosen − rejected"],
    [("sum", *sums, sums[0] - sums[1]), ("mean", *means, means[0] - means[1])],
)
print(
    f"SimPO (β 2, γ 0.5): {simpo_loss(*one)[0].item():.4f}    ORPO's odds-ratio term: {orpo_loss(*one)[0].item():.4f}"
)
p = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
fig, axis = plt.subplots(figsize=(4.6, 2.4))
for name, loss in (("SimPO, β = 2", simpo_loss), ("ORPO's term", orpo_loss)):
    x = p.log().requires_grad_()
    weights = torch.ones(len(p), dtype=torch.float64)  # each pair by itself
    (g,) = torch.autograd.grad(loss(x, torch.full_like(x, -1.0), weights=weights)[0], x)
    axis.plot(p, -g, label=name)
axis.set(xlabel="p of the chosen answer (mean per token)", ylabel="pull on it", title="rejected at p = 0.37")
axis.legend(fontsize=7)
plt.show()

# %% [markdown]
# By sums the longer answer *must* look unlikely, whatever it says; a reference takes that out again (both lengths are
# in both sums), SimPO takes it out by the mean, and lets go once the chosen answer leads by enough. ORPO's term does
# not let go: what its sigmoid takes away as p goes to 1, the odds' own 1/(1 − p) gives back, so the pull goes from 1
# to p_l/(1 − p_l) = 0.58, not to 0. It stands beside a whole NLL of the chosen answer, and is a tenth as heavy.
#
# ## 4. Single answers
#
# KTO has no pairs: an answer was good or bad, and counts by how far it has moved beyond z0, what the model has drifted
# anyway. **Predict:** which answers does it learn from most? What does it do with a bad answer that the model has come
# to love (r = +30)?

# %%
r = torch.linspace(-40, 40, 161, dtype=torch.float64)
fig, axis = plt.subplots(figsize=(5.2, 2.4))
for label, good, z0 in (("good, z0 = 0", True, 0.0), ("bad, z0 = 0", False, 0.0), ("good, z0 = 15", True, 15.0)):
    x = r.clone().requires_grad_()
    judged = torch.full((len(r),), good)
    loss, _ = kto_loss(x, torch.zeros_like(x), judged, z0, weights=torch.ones_like(x))
    axis.plot(r, -torch.autograd.grad(loss, x)[0], label=label)
axis.axhline(0, color="0.6", lw=0.8)
axis.set(xlabel="r: how far the answer has moved, nats", ylabel="pull on it")
axis.legend(fontsize=7)
plt.show()

# %% [markdown]
# Most from those that stand at z0, and next to nothing from those far off on *either* side: what is learned, and what
# is hopeless. A bad answer at r = +30 is nearly left alone, where DPO would pull at a pair that is so wrong with all
# its might. With noisy labels that is a strength: a label that contradicts everything learned is probably wrong. With
# few, clean ones it is waste.
#
# ## Which one?
#
# | you have | take | look at |
# |---|---|---|
# | pairs, the chosen answers near what the model says | DPO with an NLL term | `chosen_logps_per_token` |
# | pairs that nearly all agree (made by a rule) | IPO: it stops | `margin`, half way to its target |
# | pairs with wrong labels | cDPO, or robust DPO if you know how many | held-out accuracy |
# | chosen answers that fall | DPOP, APO zero, or more of the NLL | as above |
# | no memory for a reference | SimPO, ORPO | the answers: nothing but the learning rate holds them |
# | thumbs up and down | KTO | `z0`, and that both kinds are there |
#
# ## Change one line, predict, run
#
# 1. In section 2 make the third answer's features (0, −1). What happens to the chosen answer under DPO now, and why?
# 2. DPOP with `penalty=0` in section 1: which row does it give?
# 3. IPO's pull at the start is 2 · (1/(2β)) = 1/β. What must the learning rate do when β is halved? What under Adam?
#
# <details><summary>Answers</summary>
#
# 1. It rises, to 0.71: the direction that tells the two apart now pushes the third answer down, and its probability
#    goes to the chosen one. Displacement is a matter of where *other* answers point.
# 2. DPO's.
# 3. Be halved, for plain gradient descent: the pull is twice as large, and the target twice as far. Under Adam a
#    factor in front of the whole gradient cancels; what remains is the target, so β = 0.05 takes about twice as many
#    steps to get there.
# </details>
