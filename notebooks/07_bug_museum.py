# %% [markdown]
# # 7 · The bug museum
#
# The kinds of mistake that one meets in public post-training code, each next to the right version, with the number that
# gives it away. The wrong versions are in `tests/museum.py`; `tests/test_bug_museum.py` proves that each breaks a
# property which the right one keeps. Almost all of them run without an error and with a plausible curve.
#
# **What you need:** the README's set-up; notebook 0 read; a loss or two; a quarter of a minute. Open it with `make
# jupyter`, or run `python notebooks/07_bug_museum.py`, which needs no Jupyter (its pictures go to
# `outputs/notebooks/`).
#
# Here the mistake stands in the title. To look for one instead: `python -m posttrain.exercises` has ten loops with one
# unmarked mistake each. **Predict**, at each exhibit, what you would see in the curves of a run.

# %%
import os
import sys

if not os.path.isdir("losses"):
    os.chdir("..")  # Jupyter begins in notebooks/
sys.path[:0] = [".", "tests"]
import math

import museum
import torch
from kit import CHATML, bytelevel_tokenizer

from losses.advantages import gae, group_relative_advantages, max_rl_advantages, whiten
from losses.cispo import cispo_loss
from losses.distill import distillation_loss
from losses.dpo import dpo_loss
from losses.gspo import gspo_loss
from losses.kl import k1, k3, k3_is
from losses.kto import kto_loss
from losses.logprobs import sequence_logps, token_logps
from losses.on_policy_distillation import teacher_advantages
from losses.orpo import log_odds
from losses.sft import completion_cross_entropy, dft_loss
from losses.simpo import simpo_loss
from losses.weights import token_weights
from notebooks import show
from posttrain.tokens.batch import Example, collate


def compare(wrong, right, sign):
    show.table(["", "number"], [("wrong", wrong), ("right", right), ("what gives it away", sign)])


# %% [markdown]
# ## The KL
#
# **k3 with the ratio upside down.** π/π_ref where π_ref/π belongs. Three actions, exact expectations: KL = .5 log 2.5 +
# .2 log .4 = 0.274887. *In training:* a KL that is far too large as soon as the policy moves, and a penalty that grows
# without measure.

# %%
pi, ref = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.3, 0.5]])
compare(
    (pi * museum.k3_upside_down(pi.log(), ref.log())).sum().item(),
    (pi * k3(pi.log(), ref.log())).sum().item(),
    "0.355113 is χ² − KL, not KL",
)

# %% [markdown]
# **k1 with its sign flipped, in the reward.** A token three times as likely as under the reference should *cost* 0.1 ·
# log 3. *In training:* the KL climbs faster than without any price, and the samples get strange.

# %%
zero, logps, ref_logps = torch.zeros(1, 1), torch.tensor([[0.6]]).log(), torch.tensor([[0.2]]).log()
compare(
    museum.k1_reward_penalty_with_flipped_sign(zero, logps, ref_logps, 0.1).item(),
    (-0.1 * k1(logps, ref_logps)).item(),
    "it is paid for drifting",
)

# %% [markdown]
# **k1 as a loss.** Its expected gradient is Σ π ∇log π = 0: the penalty does nothing but add noise. *In training:*
# `kl_coef` can be anything: the KL curve does not care.

# %%


def largest_expected_gradient(estimator):
    theta = pi.log().clone().requires_grad_()
    x = torch.log_softmax(theta, -1)
    (x.detach().exp() * estimator(x)).sum().backward()
    return theta.grad.abs().max().item()


compare(
    largest_expected_gradient(lambda x: museum.k1_as_a_loss(x, ref.log())),
    largest_expected_gradient(lambda x: k3_is(x, ref.log(), x)),
    "0: nobody pulls",
)

# %% [markdown]
# **KL in the reward *and* in the loss.** Both lines look right, and they are two different penalties (notebook 3); but
# what a token itself costs is in both. *In training:* a policy that stays closer to its reference than the coefficient
# says, so the reward rises slowly.

# %%
compare(
    museum.kl_in_the_reward_and_in_the_loss(0.05, 0.05), 0.05, "a token's own KL, paid twice; refused in configs here"
)

# %% [markdown]
# ## What a token counts
#
# **Mean of micro-batch means.** 2 tokens of NLL 1 and 200 of NLL 2: the mean is (2 + 400) / 202. *In training:* another
# loss curve on another number of GPUs, with nothing else changed.

# %%
nlls = [torch.full((2,), 1.0), torch.full((200,), 2.0)]
parts = [completion_cross_entropy(-x[None], torch.full((1, len(x)), 1 / 202))[0] for x in nlls]
compare(museum.mean_of_micro_batch_means(nlls).item(), sum(parts).item(), "two tokens count as much as two hundred")

# %% [markdown]
# **"Dr. GRPO" that still divides each row by its own length.** Answers of 2 and 4 tokens; what a token of each counts:
# *In training:* wrong answers that get longer and longer.

# %%
active = torch.tensor([[True, True, False, False], [True] * 4])
wrong = museum.dr_grpo_that_still_divides_by_its_own_length(active, 2)
right = token_weights(active, "constant", total=2 * 8)
compare(
    str((wrong[0, 0].item(), wrong[1, 0].item())),
    str((right[0, 0].item(), right[1, 0].item())),
    "the length bias that was to be removed",
)

# %% [markdown]
# **Normalised over the micro-batch, not the step.** The weight of the same token, batch cut in two or not cut: *In
# training:* `micro_batch_size` becomes a hyperparameter: each value gives a different loss curve.

# %%
split = museum.token_weights_of_the_micro_batch(active[:1], 2)[0, 0].item()
whole = museum.token_weights_of_the_micro_batch(active, 1)[0, 0].item()
compare(
    f"{split:.4f} cut, {whole:.4f} whole",
    token_weights(active[:1], total=6)[0, 0].item(),
    "memory settings change the mathematics",
)

# %% [markdown]
# **A short last window, divided by the full accumulation.** Accumulation 4, one micro-batch left, NLL 2 and 2: *In
# training:* nothing, but for a last step of each epoch that hardly moves.

# %%
last = [torch.tensor([2.0, 2.0])]
compare(
    museum.linear_in_a_short_last_window(last, 4).item(),
    completion_cross_entropy(-last[0][None], token_weights(torch.ones(1, 2, dtype=torch.bool)))[0].item(),
    "the last step is a quarter of a step",
)

# %% [markdown]
# **Writing through a view of the labels.** Filling −100 with 0 "for gather" changes what is counted: *In training:* a
# loss that is too low by a factor that depends on the length of the prompts.

# %%
compare(
    museum.count_after_writing_through_a_view(torch.tensor([[-100] * 6 + [4, 5, 6]])),
    3,
    "the denominator has grown from 3 to 8",
)

# %% [markdown]
# ## Masks and tokens
#
# **pad == eos, and mask = `ids != pad`.** Two prompt tokens, answers of 3 and 5, padded with the end token 2: *In
# training:* a splendid loss, and answers that never end.

# %%
pad = 2
batch = collate([Example.of([5, 6], [7, 8, 2]), Example.of([5, 6], [7, 8, 9, 9, 2])], pad)
wrong = museum.mask_from_pad_id(batch.input_ids, [2, 2], pad)
compare(
    str(wrong.sum(1).tolist()),
    str(batch.completion_mask.sum(1).tolist()),
    "one token less a row: the end, so the model never stops",
)

# %% [markdown]
# **The sampled end token dropped from the rollout.** RL then never trains stopping. *In training:* `completion_length`
# creeps up to `max_new_tokens`.

# %%
compare(
    str(museum.completion_without_its_end_token([7, 8, 2], 2)),
    str([7, 8, 2]),
    "three decisions were made, two are rewarded",
)

# %% [markdown]
# **Each side of a pair truncated from the left.** Prompt 1 2 3 4, room for five tokens: *In training:* a loss that
# begins at ln 2 and an accuracy that rises, as if all were well.

# %%
a, b = museum.truncate_each_side_from_the_left([1, 2, 3, 4], [7], [8, 8, 8], 5)
compare(f"{a} and {b}", "both behind 1 2 3 4, or dropped", "two answers to two different prompts are compared")

# %% [markdown]
# **Decode, then tokenise again.** The sampler said "name" letter by letter; tokenised anew it is one token that nobody
# sampled: *In training:* a ratio that is not 1 at the first update, for a few tokens only.

# %%
tokenizer = bytelevel_tokenizer(CHATML)
sampled = [tokenizer.convert_tokens_to_ids(c) for c in "name"]
compare(
    str(museum.decode_and_tokenize_again(tokenizer, sampled)), str(sampled), "log-probs of other tokens: off policy"
)

# %% [markdown]
# ## Log-probs
#
# **log-softmax in bf16, then summed.** 200 tokens at −log 1000: *In training:* a margin that moves in steps.

# %%
logits, ids = torch.zeros(1, 201, 1000), torch.zeros(1, 201, dtype=torch.long)
right = sequence_logps(token_logps(logits.bfloat16(), ids), torch.ones(1, 200, dtype=torch.bool)).item()
compare(
    museum.sequence_logps_in_bf16(logits, ids).item(),
    right,
    f"true value {-200 * math.log(1000):.3f}; DPO's margins are a few nats",
)

# %% [markdown]
# **A mask inferred from `value != 0`.** At step 0 policy and reference agree, and everything is 0: *In training:* NaN
# at the first step, or a mean over too few tokens later.

# %%
same = torch.tensor([-5.0])
compare(
    museum.masked_mean_with_the_mask_inferred(torch.zeros(1, 3)).item(),
    dpo_loss(same, same, same, same)[0].item(),
    "0 / 0",
)

# %% [markdown]
# **Sampled at temperature 0.6, scored at 1.** The ratio at the very first update, which must be 1: *In training:* a
# ratio that is not 1 at the first update, where somebody compares the trainer's log-probs with the sampler's; nothing,
# where nobody does.

# %%
logits, ids = torch.tensor([[[2.0, 0.0, 0.0], [0.0] * 3]]), torch.tensor([[1, 0]])
old = token_logps(logits, ids, temperature=0.6)
wrong = (museum.sample_at_a_temperature_and_score_without_it(logits, ids) - old).exp().item()
compare(wrong, (token_logps(logits, ids, temperature=0.6) - old).exp().item(), "'on policy' is false from the start")

# %% [markdown]
# ## Advantages
#
# **Normalised inside a micro-batch that splits a group.** Rewards 1 0 1 1, one group, micro-batches of two: *In
# training:* many dead "groups", and a reward that rises slowly.

# %%
group = torch.tensor([1.0, 0.0, 1.0, 1.0])
wrong, right = museum.normalise_inside_the_micro_batch(group, 2), group_relative_advantages(group, 4)
compare(
    str([round(x, 3) for x in wrong.tolist()]),
    str([round(x, 3) for x in right.tolist()]),
    "two right answers teach nothing",
)

# %% [markdown]
# **Unfinished answers dropped before the mean.** Two right and finished, two cut off: *In training:* `finished` does
# not rise, however often unfinished answers are thrown away.

# %%
group, finished = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([True, True, False, False])
right = group_relative_advantages(group, 4, scale="none")
compare(
    str(museum.drop_unfinished_before_the_mean(group, finished).tolist()),
    str(right.tolist()),
    "finishing is worth nothing",
)

# %% [markdown]
# **`whiten` that adds the mean back.** 1, 2, 3: *In training:* while the critic is young, whatever was sampled becomes
# likelier: entropy falls early.

# %%
values = torch.tensor([1.0, 2.0, 3.0])
right = whiten(values[None], torch.ones(1, 3, dtype=torch.bool))[0]
wrong = museum.whiten_that_adds_the_mean_back(values)
compare(
    str([round(x, 3) for x in wrong.tolist()]),
    str([round(x, 3) for x in right.tolist()]),
    "no token is ever discouraged",
)

# %% [markdown]
# **An ending paid twice.** A truncated answer gets its score *and* the value of what would have come: *In training:*
# answers that are cut off become more frequent, while the reward rises.

# %%
on, half = torch.tensor([[True]]), torch.tensor([[0.5]])
compare(
    museum.ending_paid_twice(1.0, 1.0, 0.5),
    gae(torch.tensor([[1.0]]), half, on)[0].item(),
    "being cut off is the best that can happen",
)

# %% [markdown]
# **MaxRL of rewards below 0.** (r − mean) / mean is for rewards 0 and 1. One right answer of four, with 1 and −1: *In
# training:* prompts that are mostly wrong teach the wrong answers, the others the right ones; the reward parts in two.

# %%
signed = torch.tensor([1.0, -1.0, -1.0, -1.0])
compare(
    str(museum.max_rl_of_any_reward(signed).tolist()),
    str(max_rl_advantages((signed + 1) / 2, 4).tolist()),
    "the mean is −½: the right answer is discouraged",
)

# %% [markdown]
# **A teacher asked at temperature 1** for tokens that were sampled at ½ (on-policy distillation), by a student that is
# its own teacher: *In training:* an entropy that rises, and a KL to the teacher that does not go to 0.

# %%
z = torch.tensor([math.log(9.0), 0.0])
at_half = torch.log_softmax(z / 0.5, -1)[None, :1]
compare(
    museum.teacher_asked_at_temperature_1(z, z, 0, 0.5).item(),
    teacher_advantages(at_half, at_half, torch.tensor([[True]])).item(),
    "there is nothing to teach, and it teaches",
)

# %% [markdown]
# ## Ratios
#
# **GSPO's mean turned into a sum.** The ratio of an answer, [B, 1], meets the mask, [B, T], and one vote becomes one
# per token. Answers of 2 tokens (A = 1) and 4 tokens (A = −1), nothing has moved yet:

# %%
active = torch.tensor([[True, True, False, False], [True] * 4])
logps, a = torch.full((2, 4), -1.0), torch.tensor([1.0, -1.0])
compare(
    museum.gspo_with_the_mean_turned_into_a_sum(torch.zeros(2, 4), active, a).item(),
    gspo_loss(logps, logps, a, token_weights(active, "sequence"))[0].item(),
    "the long answer has twice the votes",
)

# %% [markdown]
# **GSPO's ratio as a product.** 100 tokens, each likelier by 0.0002 nats; the clip is at 1.0004: *In training:*
# `clip_fraction` near 1 from the second update on, for long answers first.

# %%
every, before = torch.ones(1, 100, dtype=torch.bool), torch.full((1, 100), -1.0)
_, metrics = gspo_loss(before + 0.0002, before, torch.ones(1), token_weights(every, "sequence"))
compare(
    museum.gspo_ratio_as_a_product(torch.full((1, 100), 0.0002), every).item(),
    metrics["ratio"][0].item(),
    "clipped for its length",
)

# %% [markdown]
# **CISPO's weight trained as well.** min(ρ, c) without the stop-gradient: the gradient is −A ρ (1 + log π), and its
# sign turns below log π = −1. A *good* token (A = 1, ρ = 1.1, log π = −3), the gradient of the loss on its log-prob:

# %%
old = torch.tensor([[-3.0 - math.log(1.1)]])


def slope(loss_of):
    logps = torch.tensor([[-3.0]], requires_grad=True)
    return torch.autograd.grad(loss_of(logps), logps)[0].item()


compare(
    slope(lambda x: museum.cispo_with_a_ratio_that_carries_gradient(x, old, torch.ones(1, 1), 1.28).sum()),
    slope(lambda x: cispo_loss(x, old, torch.ones(1), torch.ones(1, 1), clip_high=0.28)[0]),
    "above 0: a rare good token is made rarer",
)

# %% [markdown]
# ## Preferences and teachers
#
# **DFT's weight trained as well.** −p log p without the stop-gradient on p: the gradient is −p (1 + log p), and its
# sign turns below p = 1/e. Of a token with p = 0.01: *In training:* a loss that falls, and a model that says less and
# less of what it was shown.

# %%


def slope_at(logp, loss_of):
    logps = torch.tensor([[logp]], requires_grad=True)
    return torch.autograd.grad(loss_of(logps), logps)[0].item()


compare(
    slope_at(math.log(0.01), lambda x: museum.dft_whose_weight_carries_gradient(x).sum()),
    slope_at(math.log(0.01), lambda x: dft_loss(x, torch.ones(1, 1))[0]),
    "above 0: what was rare is made rarer",
)

# %% [markdown]
# **The arguments of `F.kl_div`, swapped.** `kl_div(input, target)` is KL(target‖input). A teacher (.5, .5), a student
# (.9, .1): *In training:* a student that covers a part of what its teacher says, and a falling loss.

# %%
of_student, of_teacher = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
compare(
    museum.distillation_with_the_arguments_of_kl_div_swapped(of_student, of_teacher).item(),
    distillation_loss(*(torch.stack([x, x])[None] for x in (of_student, of_teacher)), torch.ones(1, 1), mixture=0)[
        0
    ].item(),
    "KL(S‖T), not KL(T‖S)",
)

# %% [markdown]
# **SimPO on sums.** A chosen answer of 10 tokens at −1, a rejected one of 2 at −2: *In training:* the loss is that of
# the lengths, and pairs whose chosen side is longer hardly ever count as won.

# %%
compare(
    museum.simpo_on_sums(torch.tensor([-10.0]), torch.tensor([-4.0]), 2.0, 0.5).item(),
    simpo_loss(torch.tensor([-1.0]), torch.tensor([-2.0]), beta=2.0, gamma=0.5)[0].item(),
    "every token of the better answer is held against it",
)

# %% [markdown]
# **ORPO's log(1 − p) by `log1p(−exp(x))`.** An answer that the model is sure of, log p = −1e-8 per token: *In
# training:* nothing for a long time, then NaN.

# %%
sure = torch.tensor([-1e-8])
compare(museum.log_odds_by_log1p(sure).item(), log_odds(sure).item(), "float32: exp(−1e-8) is 1")

# %% [markdown]
# **KTO's z0 from the rows themselves.** It should come from prompts with answers to *other* prompts. A good answer that
# was learned long ago, r = 50, alone in its batch; the gradient on its log-prob: *In training:* the loss stays near ½
# and the log-probs go on and on.

# %%
good, zero = torch.tensor([True]), torch.zeros(1)


def kto_slope(z0_of):
    r = torch.tensor([50.0], requires_grad=True)
    return torch.autograd.grad(kto_loss(r, zero, good, z0_of(r), beta=0.1)[0], r)[0].item()


compare(kto_slope(museum.kto_z0_of_matched_pairs), kto_slope(lambda r: 0.0), "−β/4 for ever: it never has enough")

# %% [markdown]
# **KTO's z0 with gradient.** A good row; an answer to another prompt, which nobody has judged, and the gradient on it:
# *In training:* what good answers have in common with others is unlearned.

# %%
other = torch.tensor([0.4], requires_grad=True)
loss = 1 - torch.sigmoid(0.1 * (zero - museum.kto_z0_with_gradient(other)))
compare(
    torch.autograd.grad(loss.sum(), other)[0].item(), 0.0, "a row that is only there to be compared with is trained"
)

# %% [markdown]
# ## Reward models and tests
#
# **A score read at the last id that is not pad.** pad == eos again: the score of the token before the end: *In
# training:* nothing, if training reads it there as well; scores that mean nothing wherever the model is loaded by
# somebody who counts.

# %%
ids, per_token = torch.tensor([[5, 6, 0, 0, 0]]), torch.tensor([[0.1, 0.2, 0.9, 7.0, 7.0]])
compare(
    museum.score_at_the_last_id_that_is_not_pad(per_token, ids, pad_id=0).item(),
    0.9,
    "the place that was never trained",
)

# %% [markdown]
# **A test with `rtol=1e6`.** It passes for 1000 against 0.5: *In training:* a green test, for ever.

# %%
museum.assert_close_with_rtol_1e6(torch.tensor(1000.0), torch.tensor(0.5))
print("passed")

# %% [markdown]
# Two more need a model or a tokenizer of their own and are shown in `tests/test_bug_museum.py`: **two BOS tokens** (the
# template writes one, the tokenizer adds another), and
# **"adapter off" as the reference after an SFT adapter** (it is the bare base; the first DPO term is not ln 2).
#
# ## Change one line, predict, run
#
# 1. `pi = ref`. Which of the KL mistakes can still be seen?
# 2. `pad = 0` in "pad == eos". Is the wrong mask still wrong? And if only the batch were padded with 0, and the mask
#    still looked for 2?
# 3. Make all rewards of the split group 1. Do wrong and right agree?
#
# <details><summary>Answers</summary>
#
# 1. Two hide: every estimator is 0 there, whichever way up, and so is every gradient. (The flipped sign and the KL paid
#    twice have numbers of their own.) Tests that only look at
#    π = π_ref prove little.
# 2. No, `[3, 5]` twice: it is a mistake only where pad and end share an id, which is why it survives in code that was
#    tested with another tokenizer. With 0 in the batch and 2 in the mask it is worse than before, `[4, 4]`: both ends
#    are lost, and two zeros of padding are *learned* in the first row.
# 3. Yes, all 0: a dead group is dead however it is cut.
#
# </details>
