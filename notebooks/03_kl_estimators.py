# %% [markdown]
# # 3 · KL estimators
#
# RL pays a policy for staying near its reference. The KL divergence is an expectation over all continuations; what a
# training step has is one sampled token at a time. Four estimators of the same number are in use, and what matters is
# not only their *value* but where their *gradient* goes. Three actions are enough to see it exactly, by enumeration
# (Schulman 2020, "Approximating KL divergence"). Then the same with two tokens, where one more thing comes to light.
#
# Why a KL at all? A reward sees only what it was made to see. Everything else that the model can do (speak, stop, know
# facts) is held by nothing but nearness to the policy that could do it. And the KL of an answer is the sum of the KLs
# of its tokens, each at the place where it was said (`docs/math.md`), so one token is where to begin.
#
# **What you need:** the README's set-up; `losses/kl.py` read; half a minute. Open it with `make jupyter`, or run
# `python notebooks/03_kl_estimators.py`, which needs no Jupyter (its pictures go to `outputs/notebooks/`).

# %%
import os
import sys

if not os.path.isdir("losses"):
    os.chdir("..")  # Jupyter begins in notebooks/
sys.path.insert(0, ".")
import matplotlib.pyplot as plt
import torch

from losses.kl import exact_kl, k1, k2, k3, k3_is
from notebooks import show

theta = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
ref = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
pi = theta.softmax(0)
kl = exact_kl(theta[None, None], ref.log()[None, None]).item()
show.table(
    ["action", "π", "π_ref", "log π − log π_ref"],
    [(i, pi[i].item(), ref[i].item(), (pi[i] / ref[i]).log().item()) for i in range(3)],
)
print(f"KL(π‖π_ref) = {kl:.6f}")

# %% [markdown]
# ## Values: three of the four are right on average
#
# **Predict** before you run the next cell: which of the four can be negative, and which is right on average only
# nearby?
#
# With r = π_ref/π of a token sampled from π: k1 = −log r, k2 = ½ (log r)², k3 = r − 1 − log r. (k3_is is ρ · k3 with
# the importance ratio ρ to the sampling policy: at the moment of sampling ρ = 1, so the same value as k3.)

# %%
rows = []
for where, p in (("far", pi), ("near", 0.1 * pi + 0.9 * ref)):
    true = (p * (p / ref).log()).sum().item()
    for name, f in {"k1": k1, "k2": k2, "k3": k3}.items():
        values = f(p.log()[None], ref.log()[None])[0].double()
        mean = (p * values).sum().item()
        rows.append(
            (where, name, mean, mean - true, (p * (values - mean) ** 2).sum().sqrt().item(), values.min().item())
        )
show.table(["π is", "", "mean under π", "bias", "standard deviation", "smallest"], rows)

# %% [markdown]
# k1 and k3 are unbiased, k2 is biased, little when π is near π_ref. k3 is never negative, and near the reference, where
# a penalised policy lives, it varies far less than k1: that is why it is what one *plots*. Far away (the first three
# rows) it varies as much.
#
# ## Gradients: here they part
#
# The expected gradient of each, used as a loss on sampled tokens, against the two true ones. Enumerated over the three
# actions, nothing sampled. **Predict:** which of them is 0 everywhere?

# %%


def expected_gradient(f):
    """Σ_a π(a) ∇ f(log π(a)): what the average of many sampled losses would push."""
    x = theta.clone().requires_grad_()
    logps = x.log_softmax(0)
    (pi * f(logps[None], ref.log()[None])[0]).sum().backward()
    return x.grad


def true_gradient(forward):
    x = theta.clone().requires_grad_()
    p = x.softmax(0)
    ((p * (p / ref).log()).sum() if forward else (ref * (ref / p).log()).sum()).backward()
    return x.grad


table = {
    "∇ KL(π‖π_ref)": true_gradient(True),
    "∇ KL(π_ref‖π)": true_gradient(False),
    "k1 as a loss": expected_gradient(k1),
    "k2 as a loss": expected_gradient(k2),
    "k3 as a loss": expected_gradient(k3),
    "ρ·k3 as a loss": expected_gradient(lambda x, y: k3_is(x, y, pi.log()[None])),
}
show.table(
    ["", "∂/∂θ₁", "∂/∂θ₂", "∂/∂θ₃"], [(name, *(round(v, 6) + 0.0 for v in g.tolist())) for name, g in table.items()]
)
fig, axis = plt.subplots(figsize=(7, 2.6))
for i, (name, g) in enumerate(table.items()):
    axis.bar([j + 0.13 * i for j in range(3)], g.tolist(), width=0.12, label=name)
axis.set_xticks([0.3, 1.3, 2.3], ["θ₁", "θ₂", "θ₃"])
axis.legend(fontsize=7, ncols=2)
for j in range(3):
    axis.annotate("k1: 0", (j + 0.26, 0), (j + 0.26, 0.12), fontsize=7, ha="center", arrowprops={"arrowstyle": "-"})
axis.set_title("expected gradient")
plt.show()

# %% [markdown]
# * **k1 as a loss pushes nowhere**: Σ π ∇log π = 0. It is right in the *reward*, where it multiplies ∇log π; as a loss
#   it is noise. Refused here.
# * **k2 and ρ·k3** descend KL(π‖π_ref), the one that was meant: of *one* token (two are below).
# * **plain k3** (GRPO's paper, and most code) descends KL(π_ref‖π): another divergence, mass-covering instead of
#   mode-seeking.
#
# Mode-seeking, mass-covering: what that means shows where the policy *cannot* be the reference. Forty-one actions on a
# line, a reference with two humps, a policy that can only make one (softmax of a parabola: a centre and a width). Each
# KL is descended to its end:

# %%
line = torch.linspace(-4, 4, 41, dtype=torch.float64)
humps = torch.log(0.5 * torch.exp(-2 * (line + 2) ** 2) + 0.5 * torch.exp(-2 * (line - 2) ** 2)).log_softmax(0)
fig, axis = plt.subplots(figsize=(6, 2.4))
axis.fill_between(line, humps.exp(), color="0.85", label="π_ref")
for name, forward in (
    ("least KL(π‖π_ref): one hump, mode-seeking", True),
    ("least KL(π_ref‖π): both, mass-covering", False),
):
    shape = torch.tensor([1.0, -0.4], dtype=torch.float64, requires_grad=True)  # centre, log of the width
    for _ in range(2000):
        log_pi = (-0.5 * ((line - shape[0]) / shape[1].exp()) ** 2).log_softmax(0)
        one, other = (log_pi, humps) if forward else (humps, log_pi)
        (push,) = torch.autograd.grad((one.exp() * (one - other)).sum(), shape)
        shape.data -= 0.05 * push
    axis.plot(line, log_pi.detach().exp(), label=name)
axis.legend(fontsize=7, loc="upper center")
axis.set(xlabel="action", ylabel="probability", ylim=(0, 0.26))
plt.show()

# %% [markdown]
# ## What the difference does
#
# Here the policy can be the reference. Let each loss act alone, from the same start, with exact expectations. Both
# converge to π = π_ref, along different paths: plain k3 within some thirty steps, ρ·k3 only after some ninety.

# %%
paths = {}
for name, f in {"ρ·k3 (mode-seeking)": None, "k3 (mass-covering)": k3}.items():
    x, path = torch.tensor([3.0, 0.0, -3.0], dtype=torch.float64, requires_grad=True), []
    for _ in range(120):
        logps = x.log_softmax(0)
        p = logps.exp().detach()
        per = (
            k3_is(logps[None], ref.log()[None], logps.detach()[None]) if f is None else f(logps[None], ref.log()[None])
        )
        (grad,) = torch.autograd.grad((p * per[0]).sum(), x)
        x.data -= 0.5 * grad
        path.append(p.tolist())
    paths[name] = path
fig, axes = plt.subplots(1, 2, figsize=(7, 2.4), sharey=True)
for axis, (name, path) in zip(axes, paths.items(), strict=True):
    for a in range(3):
        axis.plot([p[a] for p in path], color=f"C{a}")
        axis.axhline(ref[a], color=f"C{a}", ls=":", lw=1)
    axis.set(title=name, xlabel="step (dotted: π_ref)")
plt.show()

# %% [markdown]
# With exact expectations the plain k3 rushes to give mass to what the reference likes and the policy has lost. In a
# real batch those tokens are hardly ever sampled, and when one is, its gradient is π_ref/π, which can be huge: the same
# mean, with an enormous variance. ρ·k3 moves in proportion to what the policy itself does.
#
# ## Two tokens: the KL in the loss is not the KL in the reward
#
# The KL of a whole answer is a sum over its tokens, so for the value one token at a time is enough. For the gradient it
# is not: a token also decides where the next ones stand. Two tokens of three actions are nine answers, so nothing has
# to be sampled. Only after the second action do policy and reference disagree on what comes next, and there by a lot:

# %%
same = [0.5, 0.25, 0.25]
first, first_ref = torch.tensor(same).double().log(), torch.tensor([0.25, 0.5, 0.25]).double().log()
second = torch.tensor([same, [0.8, 0.1, 0.1], same]).double().log()
second_ref = torch.tensor([same, [0.1, 0.1, 0.8], same]).double().log()


def three_gradients(first, second, first_ref, second_ref):
    """Of the first token's logits: of the KL of the answer, of ρ·k3 in the loss, of the KL paid in the reward."""
    x = first.clone().requires_grad_()
    a, b, a_ref, b_ref = (t.log_softmax(-1) for t in (x, second, first_ref, second_ref))
    answer = in_loss = in_reward = 0.0
    for i in range(3):
        for j in range(3):
            log_p, log_ref = a[i] + b[i, j], a_ref[i] + b_ref[i, j]  # of the answer (i, j)
            p = log_p.exp()
            answer = answer + p * (log_p - log_ref)  # the definition: its gradient goes through p as well
            logps, refs = torch.stack([a[i], b[i, j]])[None], torch.stack([a_ref[i], b_ref[i, j]])[None]
            in_loss = in_loss + p.detach() * k3_is(logps, refs, logps.detach()).sum()
            to_go = (log_p - log_ref).detach()  # what the first token pays: its own k1, and that of what follows it
            in_reward = in_reward + p.detach() * to_go * a[i]
    return [torch.autograd.grad(value, x, retain_graph=True)[0] for value in (answer, in_loss, in_reward)]


gradients = three_gradients(first, second, first_ref, second_ref)
names = ("∇ KL of the answer", "ρ·k3 in the loss (GRPO)", "k1 in the reward (PPO)")
show.table(
    ["first token", "∂/∂θ₁", "∂/∂θ₂", "∂/∂θ₃"],
    [(name, *(round(v, 6) for v in g.tolist())) for name, g in zip(names, gradients, strict=True)],
)

# %% [markdown]
# The loss makes the second action likelier (a gradient below 0), because π_ref likes it better. The KL of the answer
# makes it rarer, because of what comes after it. Paid in the reward, where a token is credited with all that follows,
# the KL has the gradient of the whole answer's. (For the last token all three agree: nothing follows it.)
#
# How far apart do they lie? Random policies and references:

# %%
cosines = []
for seed in range(24):
    torch.manual_seed(seed)
    x, y, x_ref, y_ref = (torch.randn(*shape, dtype=torch.float64) for shape in ((3,), (3, 3), (3,), (3, 3)))
    answer, in_loss, in_reward = three_gradients(x, y, x_ref, 2 * y_ref)
    assert torch.allclose(in_reward, answer)
    cosines.append(torch.cosine_similarity(answer, in_loss, dim=0).item())
fig, axis = plt.subplots(figsize=(7, 2.2))
axis.bar(range(24), cosines, color=["C3" if c < 0 else "C0" for c in cosines])
axis.set(title="cosine of KL-in-the-loss and ∇ KL of the answer, first token", xlabel="seed")
plt.show()
print(f"smallest {min(cosines):.2f} (seed {cosines.index(min(cosines))}), median {sorted(cosines)[12]:.3f}")

# %% [markdown]
# Both pull towards the reference, and both are in use: GRPO's stays with the states that were visited and needs no
# credit assignment (less noise), PPO's is the price in max E[r] − β KL(π‖π_ref). They are two penalties, not one in two
# places, and the same β is not the same price. Off policy ρ corrects the token, not the tokens before it.
#
# ## Change one line, predict, run
#
# 1. Set `theta` to `ref.log()`. What are all the values and all the gradients?
# 2. Turn the ratio in k3 upside down (see `tests/museum.py: k3_upside_down`). What does its mean estimate?
# 3. Start the paths at `[8, 0, -8]`. Which of the two still moves θ at step 1? (`print(grad)`: in the figure, which
#    shows π, a softmax so sure of itself hardly stirs.)
# 4. In `three_gradients` let the loss be k2 of the whole answer at once: `p.detach() * 0.5 * (log_p - log_ref) ** 2` is
#    what to add to `in_loss`. Whose gradient is that?
#
# <details><summary>Answers</summary>
#
# 1. 0, all of them: a good check for any KL code.
# 2. χ²(π‖π_ref) − KL: much larger, and not the KL of anything.
# 3. k3, here where expectations are exact: its gradient on θ is 0.8 where ρ·k3's is 0.003, because it is large where
#    the policy has no mass. (π itself goes from 0.9997 to 0.9994 only.) From samples neither would move: an action of
#    probability 1e-7 is not drawn.
# 4. That of the answer's KL, exactly: ∇ ½ (log π/π_ref)² is log π/π_ref · ∇log π, with the ratio of the whole answer,
#    and that is the KL in the reward, in disguise. (The square of a sum is not the sum of the squares.)
#
# </details>
