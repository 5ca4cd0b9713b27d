# %% [markdown]
# # 4 · Group relative policy optimisation
#
# No demonstration, only *right* or *wrong*: sample a group of answers to each problem, reinforce those that did better
# than their group (Shao et al. 2024). The embedded model goes from its SFT accuracy to near the ceiling in about twenty
# seconds.
#
# **What you need:** the README's set-up; `losses/advantages.py`, `losses/grpo.py` and `minimal/grpo.py` read; two
# minutes on one core. Open it with `make jupyter`, or run `python notebooks/04_grpo.py`, which needs no Jupyter (its
# pictures go to `outputs/notebooks/`).

# %%
import os
import sys

if not os.path.isdir("losses"):
    os.chdir("..")  # Jupyter begins in notebooks/
sys.path.insert(0, ".")
import matplotlib.pyplot as plt
import torch

from loops import grpo
from losses.advantages import group_relative_advantages, leave_one_out_advantages
from losses.grpo import grpo_loss
from losses.weights import token_weights
from notebooks import show
from posttrain import inspect_batch, models
from posttrain.config import load
from posttrain.evaluation.intervals import Proportion
from posttrain.rollouts import rewards
from posttrain.rollouts.asking import ask
from posttrain.tiny import data as tiny_data
from posttrain.tokens import template

torch.set_num_threads(1)

# %% [markdown]
# ## Groups and advantages
#
# Why does *sampled* text have a gradient at all? The expected reward is Σ_y π(y) r(y), and ∇π(y) = π(y) ∇log π(y), so
# its gradient is Σ_y π(y) r(y) ∇log π(y): the mean, over answers that the policy itself samples, of r · ∇log π. Make
# likelier what was rewarded. Subtracting a baseline b from r changes nothing on average, Σ_y π(y) b ∇log π(y) = b ∇Σ_y
# π(y) = 0, and takes most of the noise away.
#
# The group is its own baseline: no critic is needed. **Predict** the advantages of two right answers in four. Four
# answers, two right. Divided by the standard deviation (GRPO), not divided (Dr. GRPO), or against the mean of the
# *others* (leave-one-out, RLOO):

# %%
rewards_of_group = torch.tensor([1.0, 0.0, 0.0, 1.0])
show.table(
    ["", "1", "0", "0", "1"],
    [
        ("over the std", *group_relative_advantages(rewards_of_group, 4).tolist()),
        ("not divided", *group_relative_advantages(rewards_of_group, 4, scale="none").tolist()),
        ("leave one out", *leave_one_out_advantages(rewards_of_group, 4).tolist()),
        ("a dead group: all equal", *group_relative_advantages(torch.ones(4), 4).tolist()),
    ],
)

# %% [markdown]
# A **dead group** (all right, or all wrong) teaches nothing: its advantages are exactly 0. So problems should be
# neither hopeless nor solved. And the rarer a right answer in its group, the larger its advantage: 1 of 8 right gives
# it +2.47, 3 of 8 gives +1.21, because the group's standard deviation is divided out. That makes very hard and very
# easy prompts louder, which is what Dr. GRPO removes.
#
# ## Clipping
#
# **Predict:** for a *bad* answer (A = −1), on which side of 1 is the objective flat?
#
# The ratio ρ = π/π_old says how far the policy has already moved since it sampled. Beyond 1 ± ε, moving further in the
# *rewarded* direction earns nothing (flat: gradient 0); moving back always does.

# %%
ratios = torch.linspace(0.5, 1.6, 111)
fig, axes = plt.subplots(1, 2, figsize=(7, 2.4))
for axis, advantage in zip(axes, (1.0, -1.0), strict=True):
    values = []
    for ratio in ratios:
        loss, _ = grpo_loss(ratio.log()[None, None], torch.zeros(1, 1), torch.tensor([advantage]), torch.ones(1, 1))
        values.append(-loss.item())
    axis.plot(ratios, values)
    axis.axvspan(0.8, 1.2, alpha=0.1)
    axis.set(title=f"A = {advantage:+.0f}", xlabel="ρ (shaded: 1 ± ε)", ylabel="objective")
plt.show()

# %% [markdown]
# ## Three length weightings
#
# Two answers: 2 tokens with A = +1, 4 tokens with A = −1, ρ = 1. What is the loss? It depends on what a token counts,
# and so does what the policy learns about
# *length*: with GRPO's 1/|o| a long wrong answer is punished less per token than a short one.

# %%
active = torch.tensor([[True, True, False, False], [True] * 4])
for how, total in (("sequence", 2), ("token", 6), ("constant", 2 * 8)):
    weights = token_weights(active, how, total=total)
    loss, _ = grpo_loss(torch.zeros(2, 4), torch.zeros(2, 4), torch.tensor([1.0, -1.0]), weights)
    print(
        f"{how:9} loss {loss.item():+.4f}   a token of the short answer counts {weights[0, 0]:.4f}, of the long one {weights[1, 0]:.4f}"
    )

# %% [markdown]
# (`sequence` is the paper's, `token` is DAPO's and the default here, `constant` is Dr. GRPO's. With ρ = 1 the loss is a
# length-weighted mean of −A: its value depends on which answers happen to be long, not on how good they are. **GRPO's
# loss says nothing about progress.**)
#
# ## One rollout, looked at
#
# The first rollout of a run, before any update: four of its answers, with reward and advantage. **Predict:** does the
# model's own log-probability tell the right answers from the wrong ones?

# %%
config = load(
    "configs/grpo_tiny.yaml",
    {"model.name": "tiny-sft", "output.samples": 0, "output.dir": "outputs/x", "grpo.prompts_per_step": 2},
)
with show.quietly():
    seen = inspect_batch.inspect(config)
for row in range(4):
    print(seen.names[row], f"  Σ log π {seen.logps[row].sum().item():.2f}")
    show.batch(seen, row)

# %% [markdown]
# ## One whole step, looked at
#
# ![One GRPO step: a prompt, eight answers, their rewards, advantages against the group, tokens made likelier or
# rarer](../docs/pictures/grpo_step.svg)
#
# Eight answers to one problem, their rewards, their advantages; one update on these alone; and what it did to the
# probability of each answer. Made likelier: what did better than its group. (One prompt only, so that it shows; a real
# step has 16. Is the group dead where you are? Take another `training.seed`.)

# %%
one_step = {"training.max_steps": 1, "training.warmup_steps": 0, "grpo.prompts_per_step": 1, "training.seed": 4}
with show.quietly() as folder:
    config = load(
        "configs/grpo_tiny.yaml",
        {"model.name": "tiny-sft", "output.samples": 0, "output.dir": folder + "/run", "grpo.kl_coef": 0} | one_step,
    )
    seen = inspect_batch.inspect(config)
    updated = grpo.train(config).model.eval()
with torch.no_grad():
    logps = models.CompletionLogps(updated)(seen.batch)[0]
rows = []
for row in range(len(seen.batch)):
    said = seen.tokenizer.decode(seen.batch.input_ids[row][seen.batch.completion_mask[row]])
    change = (logps[row] - seen.logps[row])[seen.batch.active[row]].sum().item()
    rows.append((said.replace("\n", " ⏎ "), seen.names[row], "▲" if change > 0 else "▼", round(change, 3)))
show.table(["answer", "", "", "Δ log π"], rows)

# %% [markdown]
# ## The run
#
# `loops/grpo.py`: 60 steps, 16 problems × 8 answers each, KL price 0.02. **Predict:** from 0.4 right at the start, how
# high, and what happens to the share of dead groups as the model gets better?

# %%
with show.quietly():
    start, tokenizer, _ = models.load("tiny-sft")
problems = tiny_data.rows("tiny-math", "test")[:150]


def accuracy(model):
    asked = [template.prompt_ids(tokenizer, [{"role": "user", "content": row["prompt"]}]) for row in problems]
    rollout = ask(model, tokenizer, asked, max_new_tokens=28)
    scores, _ = rewards.of_rollout(
        [rewards.answer],
        None,
        rollout,
        rollout.texts(tokenizer),
        [{"asked": row["prompt"], "columns": row} for row in problems],
    )
    return Proportion(sum(scores), len(problems)), rollout.texts(tokenizer)


before, texts_before = accuracy(start)
with show.quietly() as folder:
    result = grpo.train(
        load("configs/grpo_tiny.yaml", {"model.name": "tiny-sft", "output.samples": 0, "output.dir": folder + "/run"})
    )
after, texts_after = accuracy(result.model)
print(f"held-out problems solved: {before}  →  {after}")
show.curves({"grpo": result.metrics}, ["reward", "dead_groups", "kl", "completion_length"], "grpo")

# %% [markdown]
# What did it find out? SFT had taught two habits: show the work, or answer at once. Only one of them pays.

# %%
show.table(
    ["problem", "before", "after"],
    [
        (problems[i]["prompt"], texts_before[i].replace("\n", " ⏎ "), texts_after[i].replace("\n", " ⏎ "))
        for i in range(4)
    ],
)
for name, texts in (("before", texts_before), ("after", texts_after)):
    print(name, "shows the work in", sum("=" in text for text in texts), "of", len(texts))

# %% [markdown]
# ## Change one line, predict, run
#
# 1. `"grpo.kl_coef": 0`: no reference at all. Does the reward end higher? What happens to the KL? (There is none to
#    measure: look at samples.)
# 2. `"grpo.group_size": 2` with `"grpo.prompts_per_step": 64`: as many answers, smaller groups. What happens to
#    `dead_groups` at the start?
# 3. `"training.learning_rate": 5e-3`, ten times as fast. Which curve tells first that something is wrong?
#
# <details><summary>Answers</summary>
#
# 1. About as high: 60 steps are too few to drift far. The price of the KL is paid for what comes later.
# 2. Up (0.6 to 0.75 instead of 0.25 to 0.35): two answers agree far more often than eight do, and a group whose answers
#    agree teaches nothing.
# 3. The KL. The reward *rises*, faster than it should (from 0.34 to 0.6 in three steps), and then collapses, to 0.1 to
#    0.3, as the policy leaves the language it had: the KL is 0.1 nats a token when the reward is highest, and about 1
#    from the twelfth step on, ten times the healthy run's.
#
# </details>
