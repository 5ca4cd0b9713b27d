# %% [markdown]
# # 6 · Reading the curves
#
# A healthy run, and next to it six sick ones. Each sickness is really run: the fault is patched into the loop (one
# straight from the bug museum, `tests/museum.py`), and the preflight, which would have refused 2 and 4 and warned of 6,
# is switched off. All of them end with exit code 0 and a saved model.
#
# **What you need:** the README's set-up; notebooks 1, 2 and 4 read; three minutes on one core. Open it with `make
# jupyter`, or run `python notebooks/06_reading_the_curves.py`, which needs no Jupyter (its pictures go to
# `outputs/notebooks/`).
#
# **Predict**, before each run, which of its three curves will give it away. An arrow then marks the sign.

# %%
import os
import sys

if not os.path.isdir("losses"):
    os.chdir("..")  # Jupyter begins in notebooks/
sys.path[:0] = [".", "tests"]
import contextlib
from dataclasses import replace
from unittest.mock import patch

import museum
import torch

from loops import dpo, grpo, sft
from notebooks import show
from posttrain.config import load
from posttrain.rollouts.asking import ask
from posttrain.tokens import template
from posttrain.tokens.batch import collate

torch.set_num_threads(1)
QUESTIONS = ["Who are you?", "What is 2 + 3?", "Tom has 3 pens. He buys 4 more. How many pens does he have now?"]


def run(loop, name, overrides=None, reward=None, fault=None):
    """One run of a shipped config, without a preflight, perhaps with something patched."""
    checks = {f"preflight.{check}": False for check in type(load(f"configs/{name}_tiny.yaml").preflight).model_fields}
    with show.quietly() as folder, fault or contextlib.nullcontext():
        more = {"output.dir": folder + "/run", "output.samples": 0} | (overrides or {})
        config = load(f"configs/{name}_tiny.yaml", checks | more)
        return loop.train(config, **({"reward": reward} if reward else {}))


def answers(result):
    prompts = [template.prompt_ids(result.tokenizer, [{"role": "user", "content": q}]) for q in QUESTIONS]
    rollout = ask(result.model.eval(), result.tokenizer, prompts, max_new_tokens=24)
    marks = [" ⏹" if done else " …" for done in rollout.finished]
    return [text.replace("\n", "⏎") + mark for text, mark in zip(rollout.texts(result.tokenizer), marks, strict=True)]


def compare(healthy, sick):
    show.table(["question", "healthy", "sick"], list(zip(QUESTIONS, answers(healthy), answers(sick), strict=True)))


# %% [markdown]
# ## Healthy
#
# SFT: the loss falls and flattens, P(stop) rises. GRPO: the reward rises, groups are mixed, the KL stays bounded.

# %%
SHORT = {"training.max_steps": 120}
RL = {"model.name": "tiny-sft", "training.max_steps": 24}
healthy_sft = run(sft, "sft", SHORT)
healthy_grpo = run(grpo, "grpo", RL)
show.curves({"sft": healthy_sft.metrics}, ["loss", "p_stop", "grad_norm"], "sft")
show.curves({"grpo": healthy_grpo.metrics}, ["reward", "dead_groups", "kl"], "grpo")

# %% [markdown]
# ## 1 · The mask covers everything
#
# Prompt tokens are learned as well: three quarters of the supervised tokens belong to the questions. The loss looks
# much like a healthy one (questions have easy and hard tokens, too), and nothing in a preflight can know what you
# wanted; `python -m posttrain.inspect_batch` shows it at once (all green). The wrong line, in code as one meets it:
#
#     labels = input_ids.clone()                        # and the prompt's are never set to −100

# %%
real_hold_out = sft.hold_out


def all_to_be_learned(encoded, share, seed):
    rows, _ = real_hold_out(encoded, share, seed)
    return [replace(row, completion_mask=[True] * len(row)) for row in rows], []


everything = run(sft, "sft", SHORT, fault=patch.object(sft, "hold_out", all_to_be_learned))
show.curves(
    {"healthy": healthy_sft.metrics, "mask covers everything": everything.metrics},
    ["loss", "entropy", "p_stop"],
    "sft",
    here={"entropy": (90, "stays high")},
)
compare(healthy_sft, everything)

# %% [markdown]
# ## 2 · pad == eos, and a mask `ids != pad`
#
# The end of the turn is masked as if it were padding. The loss is perfect, the answers are right, and **never end**.
# The sign: there is no P(stop) to be measured at all. Preflight `stop_token` refuses this run. The wrong line:
#
#     labels[labels == tokenizer.pad_token_id] = -100   # with pad_token = eos_token

# %%


def mask_from_ids(rows, pad_id):
    batch = collate(rows, pad_id)
    starts = [row.completion_mask.index(True) for row in rows]
    mask = museum.mask_from_pad_id(batch.input_ids, starts, end)  # the tokenizer pads with its end token
    return replace(batch, completion_mask=mask & batch.attention_mask)


end = template.completion_ids(healthy_sft.tokenizer, [{"role": "user", "content": "a"}], "b")[-1]
endless = run(sft, "sft", SHORT, fault=patch.object(sft, "collate", mask_from_ids))
show.curves(
    {"healthy": healthy_sft.metrics, "pad == eos": endless.metrics},
    ["loss", "entropy", "p_stop"],
    "sft",
    here={"loss": (60, "too good")},
)
compare(healthy_sft, endless)

# %% [markdown]
# ## 3 · Learning rate too high
#
# Thirty times what suits. The loss jumps up in the first steps, comes down, and stays near 2 nats, where a healthy run
# goes on to 0.4: more than the 1.3 that knowing the previous token would cost on these answers, less than the 3.7 of
# knowing only which tokens are frequent. A curve that flattens early is not a run that has converged. The wrong line:
#
#     learning_rate: 7.5e-2                             # 2.5e-3 suits; an exponent misread

# %%
hot = run(sft, "sft", SHORT | {"training.learning_rate": 0.075})
show.curves(
    {"healthy": healthy_sft.metrics, "learning rate × 30": hot.metrics},
    ["loss", "grad_norm", "entropy"],
    "sft",
    here={"loss": (70, "flat, and high")},
)
compare(healthy_sft, hot)

# %% [markdown]
# ## 4 · The reference has moved
#
# DPO against a reference that is not the starting policy (here: noise on its weights; in the wild: the base instead of
# the SFT model). Accuracy and margin rise all the same. The sign: **the first DPO term is not ln 2 = 0.693**. Preflight
# `start` refuses this run. The wrong line:
#
#     reference = load(base_model)                      # and the policy started from the SFT model

# %%
real = dpo.frozen_reference


def another_reference(policy, config, compute):
    frozen = real(policy, config.model_copy(update={"adapter": "none", "reference": "copy"}), compute)
    generator = torch.Generator().manual_seed(0)
    for p in frozen.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=generator)
    return frozen


healthy_dpo = run(dpo, "dpo")
moved = run(dpo, "dpo", fault=patch.object(dpo, "frozen_reference", another_reference))
print("first DPO term:", healthy_dpo.metrics[0]["dpo_loss"], "and", moved.metrics[0]["dpo_loss"])
show.curves(
    {"healthy": healthy_dpo.metrics, "reference moved": moved.metrics},
    ["dpo_loss", "accuracy", "margin", "rewards_chosen"],
    "dpo",
    here={"dpo_loss": (1, "not ln 2"), "margin": (1, "not 0")},
)

# %% [markdown]
# ## 5 · KL off, and the reward hacked
#
# The reward counts equals signs, which is almost "show your work"; no KL price holds the policy. The reward rises
# beautifully. What it stood for (right answers, only measured, with weight 0) rises with it at first, from 0.3 to 0.7
# or 0.8, and then falls to 0.1 or less: nobody who looks at the reward alone can tell where. The wrong line:
#
#     return [text.count("=") / 4 for text in completions]

# %%


def equals_signs(completions, **_):
    return [text.count("=") / 4 for text in completions]


from posttrain.rollouts import rewards

hacked = run(
    grpo,
    "grpo",
    RL | {"grpo.kl_coef": 0, "grpo.reward_weights": [1, 0], "grpo.reward": ["answer", "answer"]},
    reward=[equals_signs, rewards.answer],
)
show.curves(
    {"hacked": hacked.metrics},
    ["reward", "reward/answer", "completion_length", "entropy"],
    "grpo",
    here={"reward/answer": (14, "parts from the reward")},
)
compare(healthy_grpo, hacked)

# %% [markdown]
# ## 6 · All groups dead
#
# A reward that is always 0 (a bug in the parser, problems far too hard). Every advantage is 0, the KL term has no
# gradient either while the policy is the reference, nothing is learned, and the run ends like any other. Preflight
# `dead_groups` says so at the first rollout, with the reason; `dead_groups` stays at 1. The wrong line:
#
#     return [0.0 for text in completions]              # a parser that never finds the answer

# %%
dead = run(grpo, "grpo", RL, reward=lambda completions, **_: [0.0] * len(completions))
show.curves(
    {"healthy": healthy_grpo.metrics, "dead": dead.metrics},
    ["reward", "dead_groups", "grad_norm"],
    "grpo",
    here={"dead_groups": (12, "1: all dead")},
)
print("largest gradient norm of the dead run:", max(row["grad_norm"] for row in dead.metrics))

# %% [markdown]
# ## The short list
#
# | look at | it tells |
# |---|---|
# | the first DPO term | ln 2, or another reference than you think |
# | `p_stop` | missing or falling: the end of the turn is not learned |
# | `chosen_logps_per_token` | falling: the margin is won by forgetting |
# | `dead_groups` | 1: nothing can be learned |
# | a reward that is only watched | falls while the reward rises: hacked |
# | `kl_k1` | negative for long: the tokens were not sampled from this policy |
# | `samples.md` | everything else |
#
# ## Change one line, predict, run
#
# 1. Give the hacked run `"grpo.kl_coef": 0.2`. Is it cured?
# 2. Run 2 with `"preflight.stop_token": True` instead. What is the sentence?
# 3. Run 3 with `"training.max_grad_norm": 0.01`. Does clipping save it?
#
# <details><summary>Answers</summary>
#
# 1. Slowed at best, not cured (the share of right answers at the end is low with either, and falling): a price on
#    drifting does not make a wrong reward right.
# 2. "preflight: no row of the first step teaches a stop token …: the model would never learn to end its answers."
# 3. No: Adam divides by the size of the gradient, so its step is as long after clipping as before.
#
# </details>
