# %% [markdown]
# # 5 · Reward models and PPO
#
# The classic road: learn from pairs what is better, then climb that. A reward model is one number at the end of an
# answer; PPO adds a critic that guesses, after every token, how it will end. And beside it: GRPO, which needs no
# critic, and best-of-k, which hardly needs anything.
#
# **What you need:** the README's set-up; `losses/reward.py`, `losses/gae.py`, `losses/ppo.py` and `minimal/ppo.py`
# read; three minutes on one core; it falls into two halves, with a good place to stop before *GAE, step by step*. Open
# it with `make jupyter`, or run `python notebooks/05_reward_models_and_ppo.py`, which needs no Jupyter (its pictures go
# to `outputs/notebooks/`).

# %%
import os
import sys

if not os.path.isdir("losses"):
    os.chdir("..")  # Jupyter begins in notebooks/
sys.path.insert(0, ".")
import matplotlib.pyplot as plt
import torch

from loops import grpo, ppo, reward, sft
from losses.advantages import gae, kl_shaped_rewards
from losses.ppo import ppo_policy_loss, ppo_value_loss
from losses.reward import bradley_terry_loss
from notebooks import show
from posttrain.config import load
from posttrain.evaluation.intervals import Proportion
from posttrain.models import scalar
from posttrain.rollouts import rewards
from posttrain.rollouts.asking import ask
from posttrain.rollouts.best_of_k import as_rows, sample_and_score
from posttrain.tiny import data as tiny_data
from posttrain.tokens import template
from posttrain.tokens.batch import Example

torch.set_num_threads(1)

# %% [markdown]
# ## One number per answer
#
# Trained on pairs, by Bradley–Terry: −log σ(s_chosen − s_rejected). Only differences are learned: adding a constant to
# all scores changes nothing. **Predict** the four losses.

# %%
for chosen, rejected in ((1.0, 0.0), (101.0, 100.0), (0.0, 0.0), (0.0, 1.0)):
    loss, _ = bradley_terry_loss(torch.tensor([chosen]), torch.tensor([rejected]))
    print(f"s_w = {chosen:5.0f}, s_l = {rejected:5.0f}: loss {loss.item():.6f}")

# %%
with show.quietly() as folder:
    config = load("configs/reward_tiny.yaml", {"output.dir": folder + "/run", "output.samples": 0})
    trained = reward.train(config)
show.curves({"reward model": trained.metrics}, ["loss", "accuracy", "validation_accuracy", "margin"], "reward")
print(f"held-out pairs in the right order: {trained.metrics[-1]['validation_accuracy']:.2f}")

# %% [markdown]
# It reads a whole answer and says one number. Three answers to one problem:

# %%
judge, tokenizer = scalar.CompletionScores(trained.model.eval()), trained.tokenizer
question = [{"role": "user", "content": "Tom has 3 pens. He buys 4 more. How many pens does he have now?"}]
candidates = ["So 3 + 4 = 7.\n#### 7", "#### 7", "#### 9"]
examples = [
    Example.of(template.prompt_ids(tokenizer, question), template.completion_ids(tokenizer, question, text))
    for text in candidates
]
scores = scalar.score_examples(judge, examples, tokenizer.pad_token_id, 4)
show.table(["answer", "score"], [(text.replace("\n", " ⏎ "), s) for text, s in zip(candidates, scores, strict=True)])

# %% [markdown]
# It likes worked answers. How far does it see whether an answer is *right*? **Predict:** of pairs in which both answers
# show their work, one right, one wrong, how many does it put in the right order? Every held-out pair, by the style of
# its two answers (worked: there is an "=" in it); and beside the model the simplest rule there is, "the one with an =
# wins":

# %%
import json

from posttrain.tiny import names


def encoded(row, side):
    asked = [{"role": "user", "content": row["prompt"]}]
    return Example.of(template.prompt_ids(tokenizer, asked), template.completion_ids(tokenizer, asked, row[side]))


pairs = [json.loads(row) for row in names.path_of("tiny-preference", "test").read_text().splitlines()]
given = scalar.score_examples(
    judge, [encoded(row, side) for row in pairs for side in ("chosen", "rejected")], tokenizer.pad_token_id, 32
)
kinds = {}
for i, row in enumerate(pairs):
    style = " > ".join("worked" if "=" in row[side] else "bare" for side in ("chosen", "rejected"))
    rule = {"worked > bare": 1.0, "bare > worked": 0.0}.get(style, 0.5)
    for kind in (style, "all"):
        kinds.setdefault(kind, []).append((float(given[2 * i] > given[2 * i + 1]), rule))
show.table(
    ["pair (chosen > rejected)", "n", "model", "rule"],
    [
        (k, len(v), *(round(sum(x) / len(v), 2) for x in zip(*v, strict=True)))
        for k, v in sorted(kinds.items(), key=lambda kv: -len(kv[1]))
    ],
)

# %% [markdown]
# **It is a style detector.** Between styles it is right every time; within a style it is hardly better than a coin
# (with some twenty pairs of each kind, 0.64 and 0.65 do not exclude a half; over other bases and training seeds bare >
# bare came out at 0.4 to 0.65, worked > worked at 0.3 to 0.65). Showing the work and being right go together in its
# pairs (that is how the SFT model errs), so the style was nearly all that it had to learn, and the rule that only looks
# for "=" is almost as good. One figure, "so many held-out pairs in the right order", hides that: split it by what the
# model might be looking at instead. (And look at the three scores above: a wrong bare answer may stand above the right
# one.)
#
# And here it does no harm: style *is* the skill that tiny-sft lacks, so a policy that climbs this reward gets better at
# sums, up to the point where it finds what else the score rises with (`docs/ladder.md`, *the classic road*). What a
# reward model has *not* learned is what a policy will find.
#
# ## GAE, step by step
#
# Three tokens; the reward comes at the end; the critic says 0.5 before each token. δ_t is the surprise at token t, and
# the advantage collects the surprises that follow, fading with γλ. **Predict** the advantage of the *first* token, for
# λ = 1 and for λ = 0:

# %%
r, v, on = torch.tensor([[0.0, 0.0, 1.0]]), torch.full((1, 3), 0.5), torch.ones(1, 3, dtype=torch.bool)
advantages, returns = gae(r, v, on, gamma=1.0, lam=0.95)
delta = [0 + 0.5 - 0.5, 0 + 0.5 - 0.5, 1 + 0 - 0.5]
show.table(
    ["t", "reward", "V", "δ = r + V(next) − V", "A = δ + 0.95 A(next)", "return = A + V"],
    [(t, r[0, t].item(), v[0, t].item(), delta[t], advantages[0, t].item(), returns[0, t].item()) for t in range(3)],
)
fig, axis = plt.subplots(figsize=(6, 2.4))
for lam in (0.0, 0.5, 0.95, 1.0):
    axis.plot(
        gae(torch.eye(1, 12).flip(1), torch.full((1, 12), 0.5), torch.ones(1, 12, dtype=torch.bool), lam=lam)[0][0],
        label=f"λ = {lam}",
        marker=".",
    )
axis.set(title="advantage of each token of a right answer, critic at 0.5", xlabel="token", xlim=(-0.5, 15))
axis.legend(fontsize=8, loc="center right")
plt.show()

# %% [markdown]
# λ = 1 gives every token the whole outcome; λ = 0 only the last one, unless the critic has learned better in between.
#
# ## The KL is paid token by token
#
# In the reward: every token pays β (log π − log π_ref), the score is added at the last one. So a token also answers for
# the KL of what follows it. (GRPO has its KL in the loss, where it does not: notebook 3. Paying it in both places is
# refused.)

# %%
logps, ref_logps = torch.tensor([[-1.0, -0.5, -0.1]]), torch.tensor([[-1.0, -1.5, -0.1]])
print(kl_shaped_rewards(torch.tensor([1.0]), logps, ref_logps, on, kl_coef=0.1))

# %% [markdown]
# ## Two clipped losses
#
# The policy's, as in GRPO; and the critic's: a value that has moved by more than ε since the rollout is charged the
# larger of the two errors.

# %%
policy_loss, metrics = ppo_policy_loss(
    torch.tensor([[0.262364]]), torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1)
)
print(
    f"ρ = 1.3, A = 1: loss {policy_loss.item():.4f} (clipped at 1.2), clip fraction {metrics['clip_fraction'][0].item():.0f}"
)
value_loss, _ = ppo_value_loss(torch.tensor([[0.5]]), torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1))
print(f"V = 0.5, was 0, return 1: ½ max((0.5 − 1)², (0.2 − 1)²) = {value_loss.item():.4f}")

# %% [markdown]
# ## PPO beside GRPO
#
# The same start (tiny-sft), the same verifiable reward, both as shipped. A PPO rollout has 256 answers and gives 16
# updates, one of GRPO's has 128 and gives one. The critic starts at exactly 0, so in the first rollout an answer that
# scored 0 has advantage (nearly) 0 at every token, one that scored 1 has λ^k, k tokens before its end; whitening, which
# subtracts the mean, is what makes the wrong answers negative. **Predict:** which of the two needs fewer samples, and
# what the explained variance is after the first rollout.

# %%
with show.quietly() as folder:
    shared = {"output.samples": 0, "training.eval_every": None, "data.validation_split": 0.0}
    by_ppo = ppo.train(load("configs/ppo_tiny.yaml", shared | {"output.dir": folder + "/ppo"}))
    by_grpo = grpo.train(
        load("configs/grpo_tiny.yaml", {"model.name": "tiny-sft", "output.samples": 0, "output.dir": folder + "/grpo"})
    )
show.curves({"ppo": by_ppo.metrics}, ["reward", "explained_variance", "kl", "kl_k1"], "ppo")
fig, axis = plt.subplots(figsize=(5, 2.2))
axis.plot([256 * (i // 16 + 1) for i in range(240)], [row["reward"] for row in by_ppo.metrics], label="PPO")
axis.plot([128 * (i + 1) for i in range(60)], [row["reward"] for row in by_grpo.metrics], label="GRPO")
axis.set(title="share of right answers among those sampled", xlabel="answers sampled so far")
axis.legend()
plt.show()

# %% [markdown]
# A spike in `kl` that `kl_k1` does not have is no drift: `kl` is the mean of k3 = r − 1 − log r with r = π_ref/π, never
# negative and calm near the reference, but with a heavy tail. One token that the policy has made 50,000 times rarer
# than the reference, among 4,000, adds 12.5 to the mean (r grows without bound where π goes to 0; log r does not care).
# Look at both.
#
# And **best of k**: sample 8 answers to each of 960 problems (as many as GRPO has seen), keep a right one, SFT on
# those. One round, a few seconds:

# %%
with show.quietly() as folder:
    groups = sample_and_score(
        "tiny-sft",
        "tiny-math",
        ["answer"],
        k=8,
        max_prompts=960,
        temperature=1.0,
        max_new_tokens=28,
        system_prompt=None,
        seed=0,
    )
    rows, left_out = as_rows(groups, "best", min_score=1.0)  # right ones only
    more = {
        "model.name": "tiny-sft",
        "training.learning_rate": 1e-3,
        "output.dir": folder + "/best",
        "output.samples": 0,
    }
    by_best = sft.train(load("configs/sft_tiny.yaml", more), rows=rows)
print(f"{len(rows)} problems solved in eight tries, {left_out} not")

problems = tiny_data.rows("tiny-math", "test")[:150]
asked = [template.prompt_ids(tokenizer, [{"role": "user", "content": row["prompt"]}]) for row in problems]
for name, result in (("GRPO", by_grpo), ("PPO", by_ppo), ("best of 8", by_best)):
    rollout = ask(result.model.eval(), tokenizer, asked, max_new_tokens=28)
    columns = [{"asked": row["prompt"], "columns": row} for row in problems]
    right, _ = rewards.of_rollout([rewards.answer], None, rollout, rollout.texts(tokenizer), columns)
    print(f"{name:10} held-out problems solved: {Proportion(sum(right), len(right))}")

# %% [markdown]
# Where a model already solves most problems in eight tries, rejection sampling is hard to beat. (Its figure moves
# most from one base to the next: 0.95, 0.90 and 0.72 have been seen; here it starts from tiny-sft, in `docs/ladder.md`
# from the DPO model.) What it cannot do is go
# on from there by itself: the next round has to sample again, from the new model, and that is what GRPO and PPO do at
# every step.
#
# ## Change one line, predict, run
#
# 1. `"ppo.lam": 0.0`: credit is what the critic says, and nothing else. Does the policy still learn?
# 2. `"ppo.critic": "shared"`: a value head on the policy's own backbone. What does the explained variance do?
# 3. Score "#### 7." (with a full stop) by the reward model. Higher or lower than "#### 7"? Was the reward model ever
#    shown one?
#
# <details><summary>Answers</summary>
#
# 1. No: about 0.3 of the sampled answers are right at the end, as at the start, instead of 0.8 to 0.9. And the
#    explained variance looks splendid (0.7 to 0.8), because the returns are now the critic's own opinion.
# 2. It stays below 0 (−0.1 to −0.3): at this size the two losses pull at the same few weights. The policy learns all
#    the same (within some hundredths of the separate critic's).
# 3. Much higher (0.97 against −1.19 in one run: two points for a full stop; other training seeds may say otherwise).
#    Nobody taught it: answers unlike the training pairs are where a learned reward is exploited first.
#
# </details>
