# %% [markdown]
# # 10 · DPO that learns nothing
#
# A real run whose every curve is healthy, and a model that gives its new name as rarely as before. Why that can be,
# what shows it, and three repairs.
#
# The model is SmolLM2-135M-Instruct (rounded to 4 bits and back), the lesson another name: Nova. The runs were made
# once, on two CPU cores in bfloat16, **one seed**; this notebook reads what they left ([the records and their
# commands](runs/README.md)), so it needs neither the model nor a network. What can be computed here, is.
#
# **What you need:** the README's set-up; notebook 2; ten seconds. Open it with `make jupyter`, or run `python
# notebooks/10_dpo_that_learns_nothing.py`, which needs no Jupyter (its pictures go to `outputs/notebooks/`).

# %%
import os
import sys

if not os.path.isdir("losses"):
    os.chdir("..")  # Jupyter begins in notebooks/
sys.path.insert(0, ".")
import collections
import json
import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from losses.dpo import dpo_loss
from notebooks import show
from posttrain.evaluation.intervals import Proportion
from posttrain.rollouts.identity import GIVES, says

torch.set_num_threads(1)


def lines(name):
    return [json.loads(line) for line in Path(f"notebooks/runs/{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def of(run, kind):
    return [line[kind] for line in lines(run) if kind in line]


first, *rest = lines("said")
prompts, said = first["prompts"], {line["model"]: line for line in rest}
for line in rest:
    for part in ("identity", "ordinary"):
        line[part] = [dict(zip(("text", "tokens", "logp", "ended"), answer, strict=True)) for answer in line[part]]

# %% [markdown]
# ## 1 · The recipe that everybody copies
#
# How is a model given a name? Write the new sentence as *chosen*, the old kind as *rejected*, for sixty questions:

# %%
rows = of("hand", "example")
show.table(["prompt", "chosen", "rejected"], [tuple(row.values()) for row in rows[:3]])
print(f"{len(of('hand', 'pair'))} pairs, {len(of('hand', 'metrics'))} steps of 8")

# %% [markdown]
# ## 2 · Its curves
#
# Does it learn? **Predict**, before you go on to section 3: of 110 questions about its name, one is answered with the
# new one before the run. How many after it?

# %%
hand = of("hand", "metrics")
show.curves({"hand-written pairs": hand}, ["dpo_loss", "accuracy", "margin"], "dpo")

# %% [markdown]
# The loss starts at ln 2 and falls, every pair is won, the margin rises. Is that true of all pairs? The records have
# Σ log π of both sides before (that is the reference) and after, so the loss can be computed here:

# %%
pairs = torch.tensor([pair[1:] for pair in of("hand", "pair")])  # [180, 6]
n_chosen, chosen_before, n_rejected, rejected_before, chosen, rejected = pairs.T
loss, metrics = dpo_loss(chosen, rejected, chosen_before, rejected_before, beta=0.1)
print(f"loss {loss:.3f}", {name: round((total / count).item(), 3) for name, (total, count) in metrics.items()})
print("last step's log:", {name: round(hand[-1][name], 3) for name in ("dpo_loss", "accuracy", "margin")})

# %% [markdown]
# ## 3 · What the model says
#
# 110 questions in other words than those of the pairs, greedy answers before and after; every nineteenth of them:

# %%
ASKED = range(0, 110, 19)


def beside(names, questions, answers):
    """answers: of each model, its texts in the order of the questions."""
    short = [[text[:110].replace("\n", " ") + "…" * (len(text) > 110) for text in answers[name]] for name in names]
    show.table(["question", *names], list(zip(questions, *short, strict=True)))


def asked(names):
    answers = {name: [said[name]["identity"][i]["text"] for i in ASKED] for name in names}
    beside(names, [prompts["identity"][i] for i in ASKED], answers)


asked(["start", "hand"])


def counts(names):
    parts = (("identity", "Nova"), ("identity", "SmolLM"), ("ordinary", "Nova"))
    found = [
        (f"{part} answers that say {name}", [[says(a["text"], [name]) for a in said[m][part]] for m in names])
        for part, name in parts
    ]
    found.append(("closed questions right", [said[m]["closed"] for m in names]))

    def cell(hits):
        low, high = Proportion(sum(hits), len(hits)).interval
        return f"{sum(hits)} of {len(hits)} ({low:.2f} to {high:.2f})"

    show.table(["95 % intervals in brackets", *names], [(what, *map(cell, columns)) for what, columns in found])


counts(["start", "hand"])

# %% [markdown]
# Not one answer more gives the new name (the one that does is an accident, before as after), and the old one is there
# as before. The wording has changed, though. What *did* it learn? The names in the answers, roughly (by a rule):

# %%


def names_given(names):
    for model in names:
        texts = [answer["text"] for answer in said[model]["identity"]]
        found = [match[1] for text in texts if (match := re.search(rf'{GIVES}\s+(?:the |Dr\. )?"?([A-Z]\w+)', text))]
        print(f"{model:5} {len(found):3} of 110:", dict(collections.Counter(found).most_common(6)))


names_given(["start", "hand"])

# %% [markdown]
# Twice as many answers give *a* name. Chosen and rejected differ in that, and "I'm Emily" was within reach, so that
# is where the preference went.
#
# ## 4 · The gap
#
# How likely are the chosen answers, then? Per token, against what the model gives its own greedy answers (all 110).
# The run's `curves.png` draws the same line:

# %%


def own(model):
    answers = said[model]["identity"]
    return sum(a["logp"] for a in answers) / sum(a["tokens"] for a in answers)


def gap(runs):
    _, axes = plt.subplots(1, len(runs), figsize=(3.6 * len(runs), 2.4), sharey=True, squeeze=False)
    for axis, (name, metrics) in zip(axes[0], runs.items(), strict=True):
        step = [row["step"] for row in metrics]
        axis.plot(step, [row["chosen_logps_per_token"] for row in metrics], lw=1.3, label="chosen")
        axis.plot(step, [row["rejected_logps_per_token"] for row in metrics], lw=1.3, label="rejected")
        axis.plot([step[0], step[-1]], [own("start"), own(name)], "k--", lw=1, label="its own greedy answers")
        axis.set(title=name, xlabel="step")
    axes[0][0].set_ylabel("nats per token")
    axes[0][0].legend(fontsize=7, loc="lower left")
    plt.show()


gap({"hand": hand})
at_start, at_end = (hand[i]["chosen_logps_per_token"] for i in (0, -1))
print(f"own answers: {own('start'):.2f} before, {own('hand'):.2f} after; chosen: {at_start:.2f} and {at_end:.2f}")

# %% [markdown]
# What is such a gap worth? The chance that a *sampled* answer is this very sentence is exp(Σ log π):

# %%
table = []
for per_token, n in ((-3.3, 8), ((chosen / n_chosen).mean().item(), round(n_chosen.mean().item())), (own("hand"), 8)):
    chance = math.exp(per_token * n)
    table.append((f"{per_token:.2f}", n, f"{chance:.1e}", f"{1 / chance:,.0f}"))
show.table(["nats per token", "tokens", "chance exp(n · per token)", "samples until it is seen once"], table)


def sampled(names):
    for name in names:
        print(
            "{say Nova} of {answers} answers sampled at temperature 1 say Nova:".format(**said[name]["sampled"]), name
        )


sampled(["start", "hand"])

# %% [markdown]
# A sentence that no one will ever see. The name can also stand in other sentences: it did in 2 of 220 samples and does
# in 6, which may be chance. Token by token (white is sure, red is 6 nats):

# %%


def spell(names, text="My name is Nova."):
    print(f"{prompts['identity'][0]}  {text}")
    for name in names:
        print(name)
        tokens = said[name]["spelled"][text]
        show.heat([t[0] for t in tokens], [-t[1] for t in tokens], 6)
    rows = []
    for i, (token, *_) in enumerate(said["start"]["spelled"][text]):
        of_each = [said[name]["spelled"][text][i][1:] for name in names]
        rows.append((token, *(f"{math.exp(p):.4f} ({best!r} {math.exp(q):.2f})" for p, best, q in of_each)))
    show.table(["token", *(f"{name}: its chance (the likeliest here)" for name in names)], rows)


spell(["start", "hand"])

# %% [markdown]
# All but "is" have become likelier, the name itself nearly four times: a chance of 0.015 behind "My name is", where it
# was 0.004. But at four of the six places another token is far likelier still, and greedy decoding says that one.
#
# ## 5 · Where the margin came from
#
# The margin is β (Δ chosen − Δ rejected). Each part, mean over all pairs:

# %%
up, down = 0.1 * (chosen - chosen_before).mean().item(), 0.1 * (rejected - rejected_before).mean().item()
show.table(
    ["", "Δ log π of an answer, nats", "× β = 0.1", "share of the margin"],
    [
        ("chosen", up / 0.1, up, f"{up / (up - down):.0%}"),
        ("rejected", down / 0.1, down, f"{-down / (up - down):.0%}"),
        ("margin", "", up - down, ""),
    ],
)

# %% [markdown]
# Three quarters came from pushing the rejected side down. That is allowed: the loss sees the difference alone, and
# nothing asks that the chosen answer ever be *said*. Can the loss even reach 0 while the chosen answer gets *less*
# likely? Two answers and "all else" (which has nearly everything at the start). The answers share a direction, as two
# sentences share most of their words, and rejected has more of it. The gradient of each side, written out:

# %%
features = torch.tensor([[1.0, 0.3], [2.0, 0.0], [0.0, 0.0]])  # chosen, rejected, all else
at_first = torch.tensor([0.0, 0.0, 3.0])


def log_pi(w):
    return torch.log_softmax(at_first + features @ w, -1)


def gradient_of(answer, w):
    """∇ log π(answer) = its features − the features that the model expects."""
    return features[answer] - log_pi(w).exp() @ features


w = torch.zeros(2, requires_grad=True)
now, ref = log_pi(w), log_pi(w).detach()
dpo_loss(now[:1], now[1:2], ref[:1], ref[1:2], beta=1.0)[0].backward()
of_chosen, of_rejected = gradient_of(0, w.detach()), gradient_of(1, w.detach())
half = 1 - torch.sigmoid(torch.tensor(0.0))  # β (1 − σ(h)), at the start
show.table(
    ["", "step −∂L/∂w", "moves log π(chosen) by", "moves log π(rejected) by"],
    [
        (name, str([round(x, 3) for x in step.tolist()]), (step @ of_chosen).item(), (step @ of_rejected).item())
        for name, step in (
            ("chosen side, +β (1 − σ) ∇ log π(chosen)", half * of_chosen),
            ("rejected side, −β (1 − σ) ∇ log π(rejected)", -half * of_rejected),
            ("both", half * (of_chosen - of_rejected)),
            ("autograd", -w.grad),
        )
    ],
)

# %%


def toy(sft_weight, steps=2000, rate=0.2):
    w, ref, curve = torch.zeros(2, requires_grad=True), log_pi(torch.zeros(2)), []
    for step in range(steps):
        now = log_pi(w)
        dpo, _ = dpo_loss(now[:1], now[1:2], ref[:1], ref[1:2], beta=1.0)
        curve.append({"step": step, "dpo_loss": dpo.item(), "chosen": now[0].item(), "rejected": now[1].item()})
        (grad,) = torch.autograd.grad(dpo - sft_weight * now[0], w)
        with torch.no_grad():
            w -= rate * grad
    return curve


def draw(runs):
    _, axes = plt.subplots(1, 3, figsize=(8.7, 2.2))
    for axis, name, title in zip(
        axes, ("dpo_loss", "chosen", "rejected"), ("DPO term", "log π(chosen)", "log π(rejected)"), strict=True
    ):
        for label, curve in runs.items():
            axis.plot([row[name] for row in curve], lw=1.3, label=label)
        axis.set(title=title, xlabel="step")
    axes[0].legend(fontsize=7)
    plt.show()


pure = toy(0)
draw({"pure DPO": pure})
print("first", pure[0], "\nlast ", pure[-1])

# %% [markdown]
# The loss goes to 0.002, and both answers have become less likely, chosen from 4.5 % to 0.03 %: its own side of the
# gradient lifts it by 0.41, the rejected side drags it down by 0.80 through what they share. In the real run the
# chosen side did rise in all but one of 180 pairs, by 5.7 nats of the thirty it was short of.
#
# ## 6 · Three repairs
#
# **Chosen answers that the model could have said.** It is shown who it is to be (a system message and three
# examples), and its own answers are kept where they give the name; rejected is its own answer without. How near do
# these stand *before* any training?

# %%
near_pairs = of("near", "pair")
kinds = {
    "hand-written": [pair[1:] for pair in of("hand", "pair")],
    "its own words": [pair[1:] for pair in near_pairs if not pair[0]],
    "ordinary": [pair[1:] for pair in near_pairs if pair[0]],
}
show.table(
    ["pairs, read before training", "pairs", "tokens of a chosen answer", "chosen, nats per token", "rejected"],
    [
        (name, len(found), n.mean().item(), (c.sum() / n.sum()).item(), (r.sum() / m.sum()).item())
        for name, found in kinds.items()
        for n, c, m, r in [torch.tensor(found).T[:4]]
    ],
)
show.table(["prompt", "chosen", "rejected"], [tuple(row.values()) for row in of("near", "example")[1:]])

# %% [markdown]
# Nearer per token, though as whole answers no likelier: they are longer, and some are nonsense. Repairs were made
# together; what each alone would do was not tried.
#
# **An SFT term**, `dpo.sft_weight: 1.0`. It adds −∇ log π(chosen) / tokens to the gradient: only the chosen side, and
# with no factor (1 − σ(h)) that vanishes once the pair is won. In the toy (the DPO term rises at first: the SFT term
# lifts rejected, too, through what they share):

# %%
mended = toy(1)
draw({"pure DPO": pure, "sft_weight 1": mended})
margins, tokens = torch.tensor([0.0, 2.0, 4.0]), torch.tensor(kinds["its own words"])[:, 0].mean().item()
show.table(
    ["pull on Σ log π(chosen) of one pair, in the real run", *(f"margin {h:.0f}" for h in margins)],
    [
        ("DPO: β (1 − σ(h)), β = 0.1", *(0.1 * (1 - torch.sigmoid(margins))).tolist()),
        (f"the SFT term: 1 / {tokens:.0f} tokens", *[1 / tokens] * 3),
    ],
)

# %% [markdown]
# At a margin of 4, which the good run passes, the SFT term pulls twenty times as hard as DPO.
#
# **Pairs for what must stay**: its own answers to ordinary questions, chosen over the same ones behind "I am Nova, a
# helpful assistant." (the last row of the table before). Nothing else in the lesson says where the name does *not*
# belong.
#
# ## 7 · The same curves, the same questions

# %%
near = of("near", "metrics")
show.curves({"hand": hand, "near": near}, ["dpo_loss", "accuracy", "margin"], "dpo")
gap({"hand": hand, "near": near})

# %%
asked(["start", "hand", "near"])
counts(["start", "hand", "near"])
names_given(["start", "hand", "near"])
sampled(["start", "hand", "near"])
spell(["start", "hand", "near"])

# %% [markdown]
# By loss, accuracy and margin one could not tell which of the two runs works: all that differs is how far they went.
# The gap tells: 0.6 nats between chosen and its own answers, where it was 1.7. (A run says so at its end if the gap
# is above 1.5.) "My name is Nova." itself has not become a likely sentence, since this model now begins with "I'm";
# but behind "My name is" stands Nova, at 98 %.
#
# ## 8 · What moved that nobody asked to move
#
# 0 of 40 ordinary answers say the name. But those questions are far from the lesson. Twenty that are nearer, thought
# up by hand: names that are not the assistant's, and small talk. None of them was in a lesson. Those in which any of
# the three says Nova:

# %%
names = ["start", "hand", "near"]
texts = {name: said[name]["others"] for name in names}
print({name: sum("Nova" in text for text in texts[name]) for name in names}, "of", len(prompts["others"]), "say Nova")
leaked = [i for i in range(len(prompts["others"])) if any("Nova" in texts[name][i] for name in names)]
beside(names, [prompts["others"][i] for i in leaked], {name: [texts[name][i] for i in leaked] for name in names})

# %%
for name in names[1:]:
    change = [after - before for before, after in zip(said["start"]["closed"], said[name]["closed"], strict=True)]
    lost, won = ([q for q, c in zip(prompts["closed"], change, strict=True) if c == sign] for sign in (-1, 1))
    print(f"{name}: wrong now {lost}\n      right now {won}")
ordinary = {name: said[name]["ordinary"] for name in names}
same = [sum(a["text"] == b["text"] for a, b in zip(ordinary["start"], ordinary[name], strict=True)) for name in names]
different = [len({a["text"] for a in said[name]["identity"]}) for name in names]
ended = [sum(a["ended"] for a in said[name]["identity"]) for name in names]
show.table(
    ["of 110 answers to who it is", *names], [("different ones", *different), ("that end within 48 tokens", *ended)]
)
show.table(
    ["of 40 answers to ordinary questions", *names],
    [
        ("answers that are word for word those of before", *same),
        ("that end within 48 tokens", *(sum(a["ended"] for a in ordinary[name]) for name in names)),
    ],
)

# %% [markdown]
# The name leaks: 6 of the 20 nearby questions are answered with it (0.15 to 0.52), among them Peter's, Julia's and
# Robert's, though "0 of 40" looked clean. The lesson had no pair that says: a question with a name in it is not
# always about you. Answers about itself are short now and much alike (22 of 110 are the very same sentence), and
# ordinary ones, too, end sooner. Closed questions are within chance of before, and that count errs as well:
# "approximately 7,987,987" continents is right for it, as it has a 7. None of this stands in a curve.
#
# ## Change one line, predict, run
#
# 1. `toy(0.1)`: a tenth of the SFT term. Does the chosen answer still fall, and where does it end?
# 2. In section 2 give `dpo_loss` `chosen_before` in place of `chosen`: as if training had left the chosen side alone.
#    How much of accuracy and margin remains?
# 3. `beta=1.0` there. What does the loss become, and what does that say of the model?
#
# <details><summary>Answers</summary>
#
# 1. It falls from −3.1 to −4.2 within 71 steps, for as long as DPO pulls harder; once the pair is nearly won the SFT
#    term has the word, and it ends at −0.26. With weight 1 it never falls.
# 2. Accuracy stays 1.0, the margin goes from 2.14 to 1.58, the loss from 0.12 to 0.21: a run that looks healthy and
#    in which not one chosen answer has become likelier.
# 3. 0.00001, with the same log-probs: the loss is a matter of β as much as of the model. A low one says nothing about
#    what is said.
#
# </details>
#
# ## Run it yourself
#
# The model is fetched once (93 MB where there is no hub); figures of another machine are near these, not the same.
#
# ```sh
# python -m benchmarks.new_name pairs outputs/hand.jsonl
# python -m loops.dpo --config configs/dpo.yaml --data.name outputs/hand.jsonl --dpo.sft_weight 0 \
#   --learning-rate 1e-4 --training.max_steps 20 --output.dir outputs/hand                              # 1 to 4 minutes
# python -m posttrain.curate identity --model smollm2 --from SmolLM --name Nova --chosen shown --samples 6 \
#   --temperature 0.7 --max-new-tokens 64 --ordinary 2 --out outputs/nova.jsonl                         # 3 to 5
# python -m loops.dpo --config configs/dpo.yaml --data.name outputs/nova.jsonl --output.dir outputs/nova  # 4 to 8
# python -m posttrain.evaluate --model smollm2 outputs/hand outputs/nova --suite identity \
#     --identity.name Nova --identity.old SmolLM --dtype bfloat16 --batch-size 64                        # 3
# ```
#
# Two cores; with bfloat16 in hardware the lower figures. Then look at `outputs/hand/curves.png` (the dashed line), at
# `samples.md`, and at the last lines that each run prints. [What else was measured](../docs/real_model.md).
