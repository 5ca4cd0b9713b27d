"""The kinds of mistake one meets in public code: every wrong version in tests/museum.py breaks the property that the right one keeps. Each number is worked out beside it."""

import math
from types import SimpleNamespace

import museum
import pytest
import torch
from kit import CHATML, LLAMA3, bytelevel_tokenizer, tiny_folder, whole_models

from losses.advantages import gae, group_relative_advantages, max_rl_advantages, whiten
from losses.cispo import cispo_loss
from losses.distill import distillation_loss
from losses.dpo import dpo_loss
from losses.gspo import gspo_loss
from losses.kl import k1, k3, k3_is
from losses.kto import kto_kl, kto_loss
from losses.logprobs import sequence_logps, token_logps
from losses.on_policy_distillation import teacher_advantages
from losses.orpo import log_odds
from losses.sft import completion_cross_entropy, dft_loss
from losses.simpo import simpo_loss
from losses.weights import token_weights
from posttrain import models
from posttrain.config.keys import Lora, ModelWithReference
from posttrain.config.rl import Ppo
from posttrain.models import lora
from posttrain.models.reference import frozen_reference
from posttrain.tokens import template
from posttrain.tokens.batch import Example, collate

PI, REF = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.3, 0.5]])  # three actions, every expectation a sum


def test_k3_upside_down_estimates_chi_squared_minus_kl():
    # KL(π‖ref) = .5 log 2.5 + 0 + .2 log .4 = .458145 − .183258 = .274887
    # χ² = Σ π²/ref − 1 = 1.25 + .3 + .08 − 1 = .63;  χ² − KL = .355113
    right = (PI * k3(PI.log(), REF.log())).sum().item()
    wrong = (PI * museum.k3_upside_down(PI.log(), REF.log())).sum().item()
    assert right == pytest.approx(0.274887, abs=1e-6)
    assert wrong == pytest.approx(0.355113, abs=1e-6)


def test_k1_with_its_sign_flipped_pays_for_drifting():
    # a token three times as likely as under the reference: the reward must fall by 0.1 · log 3 = 0.109861
    zero, logps, ref = torch.zeros(1, 1), torch.tensor([[0.6]]).log(), torch.tensor([[0.2]]).log()
    assert (zero - 0.1 * k1(logps, ref)).item() == pytest.approx(-0.109861, abs=1e-6)
    assert museum.k1_reward_penalty_with_flipped_sign(zero, logps, ref, 0.1).item() == pytest.approx(
        +0.109861, abs=1e-6
    )


def test_k1_as_a_loss_has_an_expected_gradient_of_zero():
    def expected_gradient(estimator):
        theta = PI.log().clone().requires_grad_()
        logps = torch.log_softmax(theta, -1)
        (logps.detach().exp() * estimator(logps)).sum().backward()
        return theta.grad.abs().max().item()

    assert expected_gradient(lambda p: museum.k1_as_a_loss(p, REF.log())) < 1e-7
    assert (
        expected_gradient(lambda p: k3_is(p, REF.log(), p)) > 0.2
    )  # ∇ KL: .5 · (log 2.5 − .274887) = .320702 on the first action


def test_mean_of_micro_batch_means():
    # 2 tokens of NLL 1 and 200 tokens of NLL 2: (2 + 400) / 202 = 1.990099; the mean of the means is 1.5
    nlls = [torch.full((2,), 1.0), torch.full((200,), 2.0)]
    assert museum.mean_of_micro_batch_means(nlls).item() == pytest.approx(1.5)
    losses = [completion_cross_entropy(-x[None], torch.full((1, len(x)), 1 / 202))[0] for x in nlls]
    assert sum(losses).item() == pytest.approx(1.990099, abs=1e-6)


def test_dr_grpo_that_still_divides_each_row_by_its_length():
    # answers of 2 and 4 tokens: a token of the long one must weigh as much as one of the short one
    active = torch.tensor([[True, True, False, False], [True] * 4])
    right = token_weights(active, "constant", total=2 * 8)
    wrong = museum.dr_grpo_that_still_divides_by_its_own_length(active, 2)
    assert right[0, 0] == right[1, 0] == 1 / 16
    assert (wrong[0, 0].item(), wrong[1, 0].item()) == (0.25, 0.125)


def test_token_normalisation_over_the_micro_batch_depends_on_the_split():
    active = torch.tensor([[True, True, False, False], [True] * 4])
    split = torch.cat([museum.token_weights_of_the_micro_batch(active[i : i + 1], 2) for i in range(2)])
    whole = museum.token_weights_of_the_micro_batch(active, 1)
    assert split[0, 0].item() == 0.25 and whole[0, 0].item() == pytest.approx(1 / 6)  # ½ · ½ against 1/6
    ours = torch.cat([token_weights(active[i : i + 1], total=6) for i in range(2)])
    assert torch.equal(ours, token_weights(active))


def test_mask_from_the_pad_id_never_trains_the_end_token():
    eos = pad = 2
    prompt, completion = [5, 6], [7, 8, eos]
    batch = collate([Example.of(prompt, completion), Example.of(prompt, [7, 8, 9, 9, eos])], pad)
    assert batch.completion_mask[0].tolist() == [False, False, True, True, True, False, False]
    wrong = museum.mask_from_pad_id(batch.input_ids, [2, 2], pad)
    assert wrong[0].tolist() == [False, False, True, True, False, False, False]  # the end token is gone, in both rows
    assert not wrong[1, 6]


def test_a_rollout_without_its_end_token_never_trains_stopping():
    eos = 2
    sampled = [7, 8, eos]
    assert museum.completion_without_its_end_token(sampled, eos) == [7, 8]
    assert (
        Example.of([5], sampled).num_active == 3
    )  # the stop token is one of the three decisions that get the advantage


def test_two_bos_tokens():
    tokenizer = bytelevel_tokenizer(LLAMA3, bos="<s>")
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    messages = [{"role": "user", "content": "Hello."}]
    assert museum.tokenize_a_rendered_template(tokenizer, messages).count(bos) == 2
    assert template.prompt_ids(tokenizer, messages).count(bos) == 1


def test_truncating_each_side_from_the_left_gives_two_prompts():
    prompt, chosen, rejected = [1, 2, 3, 4], [7], [8, 8, 8]
    a, b = museum.truncate_each_side_from_the_left(prompt, chosen, rejected, 5)
    assert a[:-1] == [1, 2, 3, 4] and b[:-3] == [3, 4]  # the pair is compared under different prompts


def test_log_softmax_in_bf16_is_nats_off():
    # 200 tokens at log p = −log 1000 = −6.907755: −1381.551; bf16 has a spacing of 1/32 there, and the sum one of 8
    logits, ids = torch.zeros(1, 201, 1000), torch.zeros(1, 201, dtype=torch.long)
    wrong = museum.sequence_logps_in_bf16(logits, ids).item()
    right = sequence_logps(token_logps(logits.bfloat16(), ids), torch.ones(1, 200, dtype=torch.bool)).item()
    assert right == pytest.approx(-1381.551, abs=1e-2)
    assert abs(wrong - -1381.551) > 1


def test_a_mask_inferred_from_the_values_is_nan_at_step_zero():
    difference = torch.zeros(1, 3)  # policy − reference, where they are the same model
    assert math.isnan(museum.masked_mean_with_the_mask_inferred(difference).item())
    same = torch.tensor([-5.0])
    assert dpo_loss(same, same, same, same)[0].item() == pytest.approx(0.693147, abs=1e-6)


def test_sampling_at_a_temperature_and_scoring_without_it():
    # [2, 0, 0]: drawn at τ = 0.6 the token has log p = −0.068918; scored at 1 it seems to have −0.239545, so ρ = e^−.170627 = .843136
    logits, ids = torch.tensor([[[2.0, 0.0, 0.0], [0.0] * 3]]), torch.tensor([[1, 0]])
    old = token_logps(logits, ids, temperature=0.6)
    wrong = museum.sample_at_a_temperature_and_score_without_it(logits, ids)
    assert torch.exp(wrong - old).item() == pytest.approx(0.843136, abs=1e-6)
    assert torch.exp(token_logps(logits, ids, temperature=0.6) - old).item() == 1.0


def test_advantages_inside_a_micro_batch_that_splits_a_group():
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0])  # one group of four, micro-batches of two
    wrong = museum.normalise_inside_the_micro_batch(rewards, 2)
    assert wrong[2:].tolist() == [0.0, 0.0]  # two right answers teach nothing ...
    right = group_relative_advantages(rewards, 4)  # mean ¾, std ½: ¼ / .5001 = .499900
    assert right.tolist() == pytest.approx([0.4999, -1.4997, 0.4999, 0.4999], abs=1e-4)


def test_unfinished_rows_dropped_before_the_mean():
    # two right and finished, two truncated (reward 0): against the whole group finishing is worth +½, among the finished it is worth 0
    rewards, finished = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([True, True, False, False])
    assert museum.drop_unfinished_before_the_mean(rewards, finished).tolist() == [0.0] * 4
    assert group_relative_advantages(rewards, 4, scale="none").tolist() == [0.5, 0.5, -0.5, -0.5]


def test_a_short_last_window_divided_by_the_full_accumulation():
    # accumulation 4, but one micro-batch is left, of NLL {2, 2}: the step is ¼ of what it should be
    last = [torch.tensor([2.0, 2.0])]
    assert museum.linear_in_a_short_last_window(last, 4).item() == 0.5
    assert completion_cross_entropy(-last[0][None], token_weights(torch.ones(1, 2, dtype=torch.bool)))[0].item() == 2.0


def test_writing_through_a_view_of_the_labels_grows_the_denominator():
    labels = torch.tensor([[-100, -100, -100, -100, -100, -100, 4, 5, 6]])
    assert museum.count_after_writing_through_a_view(labels) == 8  # three tokens are to be learned
    mask = torch.tensor([[False] * 6 + [True] * 3])
    before = mask.clone()
    weights = token_weights(mask[:, 1:])
    completion_cross_entropy(torch.full((1, 8), -1.0), weights)
    assert weights.max().item() == pytest.approx(1 / 3) and torch.equal(mask, before)


def test_rtol_1e6_passes_whatever_the_code_returns():
    museum.assert_close_with_rtol_1e6(torch.tensor(1000.0), torch.tensor(0.5))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(torch.tensor(1000.0), torch.tensor(0.5))


def test_decoding_and_tokenising_again_gives_other_tokens():
    tokenizer = bytelevel_tokenizer(CHATML)
    merged = tokenizer("name", add_special_tokens=False)["input_ids"]
    sampled = [tokenizer.convert_tokens_to_ids(c) for c in "name"]  # the sampler may well say it letter by letter
    assert museum.decode_and_tokenize_again(tokenizer, sampled) == merged != sampled
    assert Example.of([1], sampled).input_ids[1:] == sampled


def test_lora_adapter_off_after_an_sft_adapter_is_the_base(tmp_path):
    base = tiny_folder(tmp_path / "base")
    sft = lora.add(models.load(base)[0], Lora(rank=4), base)
    g = torch.Generator().manual_seed(0)
    for name, p in sft.named_parameters():
        if "lora_B" in name:  # as if SFT had trained it
            p.data.copy_(0.3 * torch.randn(p.shape, generator=g))
    sft.save_pretrained(tmp_path / "sft")
    bytelevel_tokenizer().save_pretrained(tmp_path / "sft")
    batch = collate([Example.of([20, 21], [30, 31, 32]), Example.of([20, 21], [40])], 0)

    def step_0(policy, reference_logps):
        logps = sequence_logps(policy(batch)[0], batch.active)
        ref = sequence_logps(reference_logps, batch.active)
        return dpo_loss(logps[:1], logps[1:], ref[:1], ref[1:], beta=0.1)[0].item()

    wrong = models.CompletionLogps(sft)
    assert abs(step_0(wrong, museum.adapter_off_after_an_sft_adapter(wrong, batch)) - 0.693147) > 0.01
    # the right way: the SFT adapter is merged on loading, DPO gets a fresh one, and "off" is the SFT model
    right = models.CompletionLogps(lora.add(models.load(str(tmp_path / "sft"))[0], Lora(rank=4), base))
    run = SimpleNamespace(compute=torch.float32, parallel=whole_models())
    reference = frozen_reference(right, ModelWithReference(name="sft", adapter="lora"), run)
    with torch.no_grad():
        assert step_0(right, reference(batch)[0]) == pytest.approx(0.693147, abs=1e-6)
    theirs = sequence_logps(token_logps(sft(batch.input_ids).logits, batch.input_ids), batch.active)
    torch.testing.assert_close(sequence_logps(reference(batch)[0], batch.active), theirs, atol=1e-4, rtol=0)


def test_whitening_that_adds_the_mean_back_does_not_centre():
    # 1, 2, 3: the right one is −1.224745, 0, 1.224745 with mean 0; the wrong one has mean 2: no token is ever discouraged
    values = torch.tensor([1.0, 2.0, 3.0])
    right = whiten(values[None], torch.ones(1, 3, dtype=torch.bool))[0]
    assert right.tolist() == pytest.approx([-1.224745, 0.0, 1.224745], abs=1e-6)
    wrong = museum.whiten_that_adds_the_mean_back(values)
    assert wrong.mean().item() == pytest.approx(2.0) and wrong.min() > 0


def test_a_score_read_by_token_value_misses_the_end_token():
    # ids 5 6 EOS, padded with EOS: by length the score stands at place 2, by value at place 1
    ids, per_token = torch.tensor([[5, 6, 0, 0, 0]]), torch.tensor([[0.1, 0.2, 0.9, 7.0, 7.0]])
    by_length = per_token[0, torch.tensor([[True, True, True, False, False]]).sum() - 1]
    assert by_length.item() == pytest.approx(0.9)
    assert museum.score_at_the_last_id_that_is_not_pad(per_token, ids, pad_id=0).item() == pytest.approx(0.2)


def test_an_ending_paid_twice():
    # a truncated answer with score 1, value ½ of its last state before the last token, and value 1 after it
    on, values = torch.tensor([[True]]), torch.tensor([[0.5]])
    scored = gae(torch.tensor([[1.0]]), values, on)[0].item()  # 1 − ½
    bootstrapped = gae(torch.tensor([[0.0]]), values, on, bootstrap=torch.tensor([1.0]))[0].item()  # 0 + 1 − ½
    assert scored == bootstrapped == 0.5
    assert museum.ending_paid_twice(1.0, 1.0, 0.5) == 1.5


def test_kl_paid_twice_is_refused():
    assert museum.kl_in_the_reward_and_in_the_loss(0.05, 0.05) == pytest.approx(0.1)  # twice what either line says
    with pytest.raises(ValueError, match="the KL would be paid twice"):
        Ppo(reward="answer", kl_coef=0.05, kl_loss_coef=0.05)


def test_gspos_mean_turned_into_a_sum_gives_long_answers_more_votes():
    # answers of 2 tokens (A = 1) and 4 (A = −1), ρ = 1, one vote each: ½ · (−1 + 1) = 0; with a vote per token ½ · (−2 + 4) = 1
    active = torch.tensor([[True, True, False, False], [True] * 4])
    logps, advantages = torch.full((2, 4), -1.0), torch.tensor([1.0, -1.0])
    right, _ = gspo_loss(logps, logps, advantages, token_weights(active, "sequence"))
    wrong = museum.gspo_with_the_mean_turned_into_a_sum(torch.zeros(2, 4), active, advantages)
    assert right.item() == pytest.approx(0.0, abs=1e-6) and wrong.item() == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="every answer one vote"):  # what the wrong one amounts to
        gspo_loss(logps, logps, advantages, active / 2)


def test_cispo_whose_ratio_carries_gradient_turns_against_rare_tokens():
    # A = 1, ρ = 1.1 under the bound: −1.1 A, more likely. With gradient −A ρ (1 + log π): at log π = −3 it is +2.2, less likely
    for logp, wrong in ((-3.0, 2.2), (-0.5, -0.55)):
        logps, old = torch.tensor([[logp]], requires_grad=True), torch.tensor([[logp - math.log(1.1)]])
        museum.cispo_with_a_ratio_that_carries_gradient(logps, old, torch.ones(1, 1), 1.28).sum().backward()
        assert logps.grad.item() == pytest.approx(wrong, abs=1e-5)
        again = logps.detach().clone().requires_grad_()
        cispo_loss(again, old, torch.ones(1), torch.ones(1, 1), clip_high=0.28)[0].backward()
        assert again.grad.item() == pytest.approx(-1.1, abs=1e-5)


def test_gspos_ratio_as_a_product_is_clipped_for_its_length():
    # 100 tokens, each 0.0002 likelier: the mean's ratio e^.0002 = 1.0002 is inside 1 + 4e-4, the product e^.02 = 1.020201 far outside
    old, active = torch.full((1, 100), -1.0), torch.ones(1, 100, dtype=torch.bool)
    _, metrics = gspo_loss(old + 0.0002, old, torch.ones(1), token_weights(active, "sequence"))
    assert metrics["ratio"][0].item() == pytest.approx(1.0002, abs=1e-5) and metrics["clip_fraction"][0] == 0
    wrong = museum.gspo_ratio_as_a_product(torch.full((1, 100), 0.0002), active)
    assert wrong.item() == pytest.approx(1.020201, abs=1e-5) and wrong.item() > 1 + 4e-4


def test_max_rl_of_rewards_below_0_discourages_the_right_answer():
    # right 1, wrong −1: mean −½, (1 + ½) / −½ = −3 of the right one, (−1 + ½) / −½ = 1 of each wrong one
    signed = torch.tensor([1.0, -1.0, -1.0, -1.0])
    assert museum.max_rl_of_any_reward(signed).tolist() == [-3.0, 1.0, 1.0, 1.0]
    assert max_rl_advantages((signed + 1) / 2, 4).tolist() == [3.0, -1.0, -1.0, -1.0]  # of 1, 0, 0, 0: mean ¼
    with pytest.raises(ValueError, match="rewards must be 0 or 1"):
        max_rl_advantages(signed, 4)


def test_a_teacher_asked_at_another_temperature_corrects_its_own_twin():
    # z = log 9, 0: p = .9 at 1. At τ = ½ the odds are 81: .987805. A = log(.9 / .987805) = −.093090 for a model that is its own teacher
    z = torch.tensor([math.log(9.0), 0.0])
    assert museum.teacher_asked_at_temperature_1(z, z, 0, 0.5).item() == pytest.approx(-0.093090, abs=1e-5)
    at_half = torch.log_softmax(z / 0.5, -1)[None, :1]
    assert teacher_advantages(at_half, at_half, torch.tensor([[True]])).item() == 0


def test_dft_whose_weight_carries_gradient_makes_rare_tokens_rarer():
    # right: −p. With gradient −p (1 + log p): at p = .01 it is −.01 · (1 − 4.605170) = +.036052, at p = ½ −.153426
    for p, wrong in ((0.01, 0.036052), (0.5, -0.153426)):
        logps = torch.tensor([[p]]).log().requires_grad_()
        museum.dft_whose_weight_carries_gradient(logps).sum().backward()
        assert logps.grad.item() == pytest.approx(wrong, abs=1e-6)
        again = logps.detach().clone().requires_grad_()
        dft_loss(again, torch.ones(1, 1))[0].backward()
        assert again.grad.item() == pytest.approx(-p, abs=1e-6)


def test_swapped_arguments_of_kl_div_are_the_other_direction():
    # T = (.5, .5), S = (.9, .1): KL(T‖S) = .510826, KL(S‖T) = .368064
    student, teacher = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    wrong = museum.distillation_with_the_arguments_of_kl_div_swapped(student, teacher)
    assert wrong.item() == pytest.approx(0.368064, abs=1e-6)
    both = (torch.stack([x, x])[None] for x in (student, teacher))
    assert distillation_loss(*both, torch.ones(1, 1), mixture=0)[0].item() == pytest.approx(0.510826, abs=1e-6)


def test_simpo_on_sums_holds_its_length_against_a_long_answer():
    # chosen: 10 tokens of −1, rejected: 2 of −2. Means lead by 1: −log σ(2 · 1 − ½) = .201413; sums trail by 6: −log σ(−12.5) = 12.500004
    right, _ = simpo_loss(torch.tensor([-1.0]), torch.tensor([-2.0]), beta=2.0, gamma=0.5)
    wrong = museum.simpo_on_sums(torch.tensor([-10.0]), torch.tensor([-4.0]), 2.0, 0.5)
    assert right.item() == pytest.approx(0.201413, abs=1e-6) and wrong.item() == pytest.approx(12.500004, abs=1e-5)


def test_log_odds_of_a_certain_answer_are_infinite_by_log1p():
    # log p = −1e-8: p / (1 − p) = 1e8, its log 18.420681
    log_p = torch.tensor([-1e-8])
    assert museum.log_odds_by_log1p(log_p).item() == math.inf
    assert log_odds(log_p).item() == pytest.approx(18.420681, abs=1e-5)


def test_ktos_z0_of_matched_pairs_never_has_enough():
    # one row, judged good, r = 50: z0 = 50 and the gradient is −β/4 = −.025 as at the start. Right, with z0 = 0:
    # −β σ(5) σ(−5) = −.1 · .993307 · .006693 = −.000665, for it has been learned
    r = torch.tensor([50.0], requires_grad=True)
    good, zero = torch.tensor([True]), torch.zeros(1)
    for z0, slope in ((museum.kto_z0_of_matched_pairs(r), -0.025), (kto_kl(zero, zero, good), -0.000665)):
        loss, _ = kto_loss(r, zero, good, z0, beta=0.1)
        assert torch.autograd.grad(loss, r)[0].item() == pytest.approx(slope, abs=1e-6)


def test_ktos_z0_with_gradient_unlearns_what_nobody_judged():
    # good, r = 0, one answer to another prompt with r' = .4: ∂/∂r' = +β σ(−.04) σ(.04) = .1 · .2499 = .02499, and it should be 0
    other = torch.tensor([0.4], requires_grad=True)
    zero, good = torch.zeros(1), torch.tensor([True])
    wrong = 1 - torch.sigmoid(0.1 * (zero - museum.kto_z0_with_gradient(other)))
    assert torch.autograd.grad(wrong.sum(), other)[0].item() == pytest.approx(0.02499, abs=1e-6)
    assert not kto_kl(other, zero, good).requires_grad
    loss, _ = kto_loss(zero.clone().requires_grad_(), zero, good, kto_kl(other, zero, good), beta=0.1)
    assert torch.autograd.grad(loss, other, allow_unused=True)[0] is None
