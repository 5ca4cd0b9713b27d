# %% [markdown]
# # 4 · Group relative policy optimisation
#
# No demonstration, only *right* or *wrong*: sample a group of answers to each problem, reinforce those that did better
# than their group (Shao et al. 2024). The embedded model goes from its SFT accuracy to near the ceiling in about twenty
# seconds.

# %%
import sys

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
# The group is its own baseline: no critic is needed. Four answers, two right. Divided by the standard deviation (GRPO),
# not divided (Dr. GRPO), or against the mean of the *others* (leave-one-out, RLOO):

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
# neither hopeless nor solved.
#
# ## Clipping
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
# length-weighted mean of −A: which answers are long decides it, not how good they are. **GRPO's loss says nothing about
# progress.**)
#
# ## One rollout, looked at
#
# The first rollout of a run, before any update: four of its answers, with reward and advantage.

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
# ## The run
#
# `loops/grpo.py`: 60 steps, 16 problems × 8 answers each, KL price 0.02.

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
# 2. Up (0.6 instead of 0.25): two answers agree far more often than eight do, and a group whose answers agree teaches
#    nothing.
# 3. The KL (0.8 nats a token at step 10 instead of 0.08), and then the reward, which never rises.
#
# </details>
