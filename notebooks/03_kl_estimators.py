# %% [markdown]
# # 3 · KL estimators
#
# RL pays a policy for staying near its reference. The KL divergence is an expectation over all continuations; what a
# training step has is one sampled token at a time. Four estimators of the same number are in use, and what matters is
# not only their *value* but where their *gradient* goes. Three actions are enough to see it exactly, by enumeration
# (Schulman 2020, "Approximating KL divergence").

# %%
import sys

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
# actions, nothing sampled:

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
axis.set_title("expected gradient")
plt.show()

# %% [markdown]
# * **k1 as a loss pushes nowhere**: Σ π ∇log π = 0. It is right in the *reward*, where it multiplies ∇log π; as a loss
#   it is noise. Refused here.
# * **k2 and ρ·k3** descend KL(π‖π_ref), the one that was meant.
# * **plain k3** (GRPO's paper, and most code) descends KL(π_ref‖π): another divergence, mass-covering instead of
#   mode-seeking.
#
# ## What the difference does
#
# Let each loss act alone, from the same start, with exact expectations. All of them end at π = π_ref; the ways differ.

# %%
paths = {}
for name, f in {"ρ·k3 (mode-seeking)": None, "k3 (mass-covering)": k3}.items():
    x, path = torch.tensor([3.0, 0.0, -3.0], dtype=torch.float64, requires_grad=True), []
    for _ in range(60):
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
# ## Change one line, predict, run
#
# 1. Set `theta` to `ref.log()`. What are all the values and all the gradients?
# 2. Turn the ratio in k3 upside down (see `tests/museum.py: k3_upside_down`). What does its mean estimate?
# 3. Start the paths at `[8, 0, -8]`. Which of the two still moves at step 1?
#
# <details><summary>Answers</summary>
#
# 1. 0, all of them: a good check for any KL code.
# 2. χ²(π‖π_ref) − KL: much larger, and not the KL of anything.
# 3. k3, here where expectations are exact: its gradient is large where the policy has no mass. From samples neither
#    would move: an action of probability 1e-7 is not drawn.
#
# </details>
