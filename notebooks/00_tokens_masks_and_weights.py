# %% [markdown]
# # 0 · Tokens, masks and weights
#
# What a batch is before any loss sees it: a conversation becomes text, text becomes ids, some ids are to be learned,
# and each of those counts something. Most silent failures of post-training happen here. Everything is imported from the
# project; nothing is defined again.
#
# **What you need:** the README's set-up; nothing read before; a minute on one core. Open it with `make jupyter`, or run
# `python notebooks/00_tokens_masks_and_weights.py`, which needs no Jupyter (its pictures go to `outputs/notebooks/`).

# %%
import os
import sys

if not os.path.isdir("losses"):
    os.chdir("..")  # Jupyter begins in notebooks/
sys.path.insert(0, ".")
import torch

from losses.logprobs import token_logps
from losses.sft import completion_cross_entropy
from losses.weights import step_total, token_weights
from notebooks import show
from posttrain import inspect_batch, models
from posttrain.config import load
from posttrain.tokens import template
from posttrain.tokens.batch import Example, collate

torch.set_num_threads(1)
with show.quietly():
    model, tokenizer, _ = models.load("tiny-sft")  # 150,000 parameters, built on first use

# %% [markdown]
# ## From messages to ids
#
# The chat template is a small program that writes a conversation as one text. The **prompt** is exactly what the model
# will see when it is asked; the **completion** is the rest, up to and including the token that ends the turn. So `ids
# == prompt + completion`, always.
#
# **Predict:** which id ends the completion, and would a mask that looks for padding keep it?

# %%
messages = [{"role": "user", "content": "What is 2 + 3?"}]
prompt = template.prompt_ids(tokenizer, messages)
completion = template.completion_ids(tokenizer, messages, "#### 5")
print(tokenizer.decode(prompt + completion))
print("prompt    ", prompt)
print("completion", completion, "ends with", tokenizer.convert_ids_to_tokens(completion[-1]))

# %% [markdown]
# ## The mask comes from lengths
#
# Not from searching for a string in the text, and never from token *values*: if the padding token is the end token (as
# in many tokenizers), a mask `ids != pad` would also remove the end of the answer, and the model would never learn to
# stop.

# %%
config = load("configs/sft_tiny.yaml", {"training.batch_size": 4, "output.dir": "outputs/notebook"})
with show.quietly():
    seen = inspect_batch.inspect(config)
for row in range(2):
    show.batch(seen, row)

# %% [markdown]
# Blue is prompt, green is learned, grey is padding. The same as a page: `python -m posttrain.inspect_batch --config …
# --html batch.html`.
#
# ## The shift, stated once
#
# ![A conversation as tokens, ids, the mask on the completion, and predictions that score the next
# token](../docs/pictures/tokens.svg)
#
# Position *t* of the logits predicts token *t + 1*. So a row of S tokens has T = S − 1 predictions, and the mask of the
# predictions is `active = completion_mask[:, 1:]`. The first token of a row is predicted by nothing.

# %%
example = Example.of(prompt, completion)
batch = collate([example], tokenizer.pad_token_id)
with torch.no_grad():
    logps = token_logps(model(input_ids=batch.input_ids).logits, batch.input_ids)  # [1, T]
print("S =", batch.input_ids.shape[1], " T =", logps.shape[1], " active:", int(batch.active.sum()))
rows = [
    (
        t,
        tokenizer.decode([batch.input_ids[0, t]]),
        "→",
        tokenizer.decode([batch.input_ids[0, t + 1]]),
        round(logps[0, t].item(), 3),
    )
    for t in batch.active[0].nonzero().flatten().tolist()
]
show.table(["t", "sees", "", "predicts", "log π"], rows)

# %% [markdown]
# ## A loss never divides
#
# Every loss of this project is a weighted **sum**, Σ w · (something per token). What one token counts is decided once
# per optimiser step, over all its micro-batches and processes. Two rows, of 4 and of 1 tokens; the three length
# conventions of the field. **Predict:** what does a token of the short row count, under each?

# %%
active = torch.tensor([[True, True, True, True], [True, False, False, False]])
for how, meaning in (
    ("token", "every token the same: 1 / 5 tokens"),
    ("sequence", "every row the same: 1 / (2 rows · its length)"),
    ("constant", "Dr. GRPO: 1 / (2 rows · 4, the longest allowed)"),
):
    total = step_total(active.sum(1).tolist(), how, longest=4)  # 5 tokens; 2 rows; 2 rows of 4
    print(f"{how:9}", [[round(w, 4) for w in row] for row in token_weights(active, how, total=total).tolist()], meaning)

# %% [markdown]
# Why it matters: two micro-batches with token losses {4} and {1, 1, 1}. Averaging the means gives (4 + 1) / 2 = 2.5;
# the batch as a whole has (4 + 1 + 1 + 1) / 4 = 1.75. With the total counted first, the parts add up to the whole,
# however it is cut:

# %%
cut = [torch.tensor([[-4.0]]), torch.tensor([[-1.0, -1.0, -1.0]])]
parts = []
for logps in cut:
    on = torch.ones_like(logps, dtype=torch.bool)
    parts.append(completion_cross_entropy(logps, token_weights(on, "token", total=4))[0].item())
print("mean of means:", sum(-x.mean().item() for x in cut) / 2)
print("weighted sums:", parts, "→", sum(parts))

# %% [markdown]
# And what has weight 0 may hold anything: it is replaced before any arithmetic, so not even a NaN in the padding
# reaches the loss or its gradient.

# %%
logps = torch.tensor([[-1.0, float("nan")]], requires_grad=True)
loss, _ = completion_cross_entropy(logps, torch.tensor([[1.0, 0.0]]))
loss.backward()
print("loss", loss.item(), " gradient", logps.grad.tolist())

# %% [markdown]
# ## Change one line, predict, run
#
# 1. Type `<|im_end|>` inside the user's message. How many ids does it become? (`template.prompt_ids(tokenizer,
#    [{"role": "user", "content": "<|im_end|>"}])`)
# 2. Give the second row of `active` three more tokens. What happens to the weights under `token`, what under
#    `sequence`?
# 3. Set `data.max_length` to 30 in the config of the inspected batch. What does the run say?
#
# <details><summary>Answers</summary>
#
# 1. Several (nine with this tokenizer): what a user types stays text. Only where the template writes it is it the one
#    special id, or anybody could end a turn by typing.
# 2. `token`: all weights fall (to 1/8 each), long rows count more than short ones.
#    `sequence`: the first row keeps 1/8 a token,
#    the second row's single 1/2 is divided among its four.
# 3. It stops: more than 5 % of the rows would be dropped, and it tells how many, and which key to change.
#
# </details>
