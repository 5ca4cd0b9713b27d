# %% [markdown]
# # 1 · Supervised fine-tuning
#
# Cross-entropy by hand on four tokens, then the real thing: the embedded base, which has only read text, learns to
# answer. Before and after, and what each single token costs.
#
# **What you need:** the README's set-up; notebook 0 and `losses/sft.py` read; a minute on one core. Open it with `make
# jupyter`, or run `python notebooks/01_supervised_fine_tuning.py`, which needs no Jupyter (its pictures go to
# `outputs/notebooks/`).

# %%
import os
import sys

if not os.path.isdir("losses"):
    os.chdir("..")  # Jupyter begins in notebooks/
sys.path.insert(0, ".")
import math

import torch

from loops import sft
from losses.logprobs import token_logps
from losses.sft import completion_cross_entropy
from losses.weights import token_weights
from notebooks import show
from posttrain import models
from posttrain.config import load
from posttrain.rollouts.asking import ask
from posttrain.tokens import template
from posttrain.tokens.batch import Example, collate

torch.set_num_threads(1)

# %% [markdown]
# ## Four tokens, with a pencil
#
# A vocabulary of three, four tokens, so three predictions. Where the model is sure and right, the loss is near 0; where
# it spreads its bets evenly over V entries, it is ln V; where it is sure and wrong, it is large. **Predict** the three
# numbers of the table before you look.

# %%
logits = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])  # [B=1, S=4, V=3]
ids = torch.tensor([[1, 0, 2, 1]])
logps = token_logps(logits, ids)[0]  # position t scores ids[t + 1]
by_hand = [2 - math.log(math.e**2 + 2), -math.log(3), 0 - math.log(math.e**3 + 2)]
show.table(
    ["t", "target", "log π", "by hand", ""],
    [
        (0, 0, logps[0].item(), by_hand[0], "sure and right"),
        (1, 2, logps[1].item(), by_hand[1], "no idea: −ln 3"),
        (2, 1, logps[2].item(), by_hand[2], "sure and wrong"),
    ],
)
loss, _ = completion_cross_entropy(logps[None], token_weights(torch.ones(1, 3, dtype=torch.bool), "token"))
print("mean over the three:", loss.item())

# %% [markdown]
# ## The base does not answer
#
# It has read sums, stories and worked problems, but never a conversation: it continues, and never ends its turn (…
# instead of ⏹).

# %%
with show.quietly():
    base, tokenizer, _ = models.load("tiny-base")
QUESTIONS = ["Who are you?", "What is 2 + 3?", "Tom has 3 pens. He buys 4 more. How many pens does he have now?"]


def answers(model):
    prompts = [template.prompt_ids(tokenizer, [{"role": "user", "content": q}]) for q in QUESTIONS]
    rollout = ask(model, tokenizer, prompts, max_new_tokens=24)
    marks = [" ⏹" if done else " …" for done in rollout.finished]
    return [text.replace("\n", "⏎") + mark for text, mark in zip(rollout.texts(tokenizer), marks, strict=True)]


before = answers(base)
show.table(["question", "base"], list(zip(QUESTIONS, before, strict=True)))

# %% [markdown]
# ## The loop
#
# `loops/sft.py`, the same that trains a 7B model: 400 steps of 16 conversations. It takes about ten seconds.
# **Predict:** where does the loss begin (the vocabulary has 814 entries: ln 814 = 6.7; can it be above?), and which
# rises first, the probability of stopping or that of the right number?

# %%
with show.quietly() as folder:
    config = load("configs/sft_tiny.yaml", {"output.dir": folder + "/run", "output.samples": 0})
    result = sft.train(config)
show.curves({"sft": result.metrics}, ["loss", "p_stop", "grad_norm", "learning_rate"], "sft")

# %% [markdown]
# *P(stop)* is the probability of the turn-end token where an answer ends: at the start the base gives it almost none,
# and that is why it never stops.

# %%
show.table(["question", "base", "after SFT"], list(zip(QUESTIONS, before, answers(result.model), strict=True)))

# %% [markdown]
# ## What each token costs
#
# The negative log-probability of every token of one answer, before and after: white is 0, dark red 8 nats *or more*
# (some of the base's cost twice that; the number stands under each token). After SFT only the *decisions* cost
# something (which of two styles, which number); the rest follows.

# %%
question = [{"role": "user", "content": "Tom has 3 pens. He buys 4 more. How many pens does he have now?"}]
answer = template.completion_ids(tokenizer, question, "So 3 + 4 = 7.\n#### 7")
prompt = template.prompt_ids(tokenizer, question)
batch = collate([Example.of(prompt, answer)], tokenizer.pad_token_id)
for name, model in (("base", base), ("after SFT", result.model)):
    with torch.no_grad():
        logps = models.CompletionLogps(model.eval())(batch)[0][0]
    cost = [-x for x in logps[len(prompt) - 1 :].tolist()]
    print(f"{name}: {sum(cost):.2f} nats for {len(cost)} tokens")
    show.heat([tokenizer.decode([t]) for t in answer], cost, most=8)

# %% [markdown]
# ## Change one line, predict, run
#
# 1. Train with `"training.learning_rate": 2.5e-5`, a hundredth. Where does the loss end after 400 steps?
# 2. Train with `"data.train_on": "last"`. Does anything change? (How many turns do these conversations have?)
# 3. Train with `"sft.length_weighting": "sequence"`. Short answers now weigh more per token. Does P(stop) rise faster
#    or slower?
#
# <details><summary>Answers</summary>
#
# 1. Far above (between 3 and 4.5 instead of 0.2; P(stop) is still under 0.01): learning rates that suit a 1B model
#    hardly move one with 150,000 parameters.
# 2. Nothing: each of these conversations has a single answer. On multi-turn data it would learn the last only.
# 3. A little faster, on average: over steps 20 to 40 the mean P(stop) is higher by some hundredths (two seeds: 0.69
#    against 0.67, 0.68 against 0.61), though single steps go either way: one noisy step is no evidence. An answer of
#    three tokens has its end token weighted as a third of a row, in a long one it is a twentieth of a row.
#
# </details>
