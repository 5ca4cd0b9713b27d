"""The bug museum: kinds of mistake that one meets in public code, each re-created in a few lines.

`test_bug_museum.py` shows that every wrong version breaks a property that the right one keeps: so the mistake can be
recognised, and the tests are known to be able to fail. Nothing here is used by the project.
"""

import torch
from torch import Tensor


def k3_upside_down(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """The ratio π/π_ref where π_ref/π belongs."""
    log_r = logps - ref_logps
    return torch.exp(log_r) - 1 - log_r


def k1_reward_penalty_with_flipped_sign(rewards: Tensor, logps: Tensor, ref_logps: Tensor, coef: float) -> Tensor:
    """Adds coef · (log π − log π_ref) to the reward: it must be subtracted."""
    return rewards + coef * (logps - ref_logps)


def k1_as_a_loss(logps: Tensor, ref_logps: Tensor) -> Tensor:
    return logps - ref_logps


def mean_of_micro_batch_means(nlls: list[Tensor]) -> Tensor:
    return torch.stack([nll.mean() for nll in nlls]).mean()


def dr_grpo_that_still_divides_by_its_own_length(active: Tensor, rows: int) -> Tensor:
    """Dropped the standard deviation, kept 1/|o_i|: that is sequence weighting, not Dr. GRPO's constant."""
    return active / active.sum(1, keepdim=True) / rows


def token_weights_of_the_micro_batch(active: Tensor, accumulation: int) -> Tensor:
    """Token mean over the micro-batch, divided by the number of micro-batches: depends on how the batch was split."""
    return active / active.sum() / accumulation


def mask_from_pad_id(input_ids: Tensor, prompt_lengths: list[int], pad_id: int) -> Tensor:
    """labels = ids where ids != pad: with pad == eos the end token is never trained."""
    mask = input_ids != pad_id
    for row, length in enumerate(prompt_lengths):
        mask[row, :length] = False
    return mask


def completion_without_its_end_token(completion_ids: list[int], eos_id: int) -> list[int]:
    return completion_ids[: completion_ids.index(eos_id)] if eos_id in completion_ids else completion_ids


def tokenize_a_rendered_template(tokenizer, messages: list[dict]) -> list[int]:
    """The template has written the bos token; the tokenizer adds another."""
    return tokenizer(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))["input_ids"]


def truncate_each_side_from_the_left(prompt: list[int], chosen: list[int], rejected: list[int], max_length: int):
    return (prompt + chosen)[-max_length:], (prompt + rejected)[-max_length:]


def sequence_logps_in_bf16(logits: Tensor, ids: Tensor) -> Tensor:
    logps = torch.log_softmax(logits.bfloat16()[:, :-1], dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return logps.sum(-1)


def masked_mean_with_the_mask_inferred(values: Tensor) -> Tensor:
    """Positions that hold 0 are taken for padding: where policy == reference everything is 0, and 0 / 0 is NaN."""
    mask = values != 0
    return (values * mask).sum() / mask.sum()


def sample_at_a_temperature_and_score_without_it(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.log_softmax(logits[:, :-1], dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def normalise_inside_the_micro_batch(rewards: Tensor, micro_batch: int) -> Tensor:
    """Mean and std of the rows that happen to share a micro-batch: a group that is split gets two baselines."""
    return torch.cat([(r - r.mean()) / (r.std() + 1e-4) for r in rewards.split(micro_batch)])


def drop_unfinished_before_the_mean(rewards: Tensor, finished: Tensor) -> Tensor:
    return torch.where(finished, rewards - rewards[finished].mean(), 0.0)


def linear_in_a_short_last_window(nlls: list[Tensor], accumulation: int) -> Tensor:
    """Every micro-batch's mean divided by `accumulation`, also in a last window that has fewer."""
    return sum(nll.mean() / accumulation for nll in nlls)


def count_after_writing_through_a_view(labels: Tensor) -> int:
    """shifted is a view of labels: filling in −100 with 0 (to gather) also changes the labels that are counted."""
    shifted = labels[:, 1:]
    shifted[shifted == -100] = 0
    return int((labels[:, 1:] != -100).sum())


def assert_close_with_rtol_1e6(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e6, atol=0)


def decode_and_tokenize_again(tokenizer, completion_ids: list[int]) -> list[int]:
    return tokenizer(tokenizer.decode(completion_ids), add_special_tokens=False)["input_ids"]


def adapter_off_after_an_sft_adapter(policy, batch) -> Tensor:
    """The SFT adapter goes on being trained; "adapter off" is then the bare base, not the model that DPO started from."""
    with torch.no_grad(), policy.model.disable_adapter():
        return policy(batch)[0]


def gspo_with_the_mean_turned_into_a_sum(log_ratio: Tensor, active: Tensor, advantages: Tensor) -> Tensor:
    """ρ [B, 1] meets the mask [B, T]: broadcast, the answer's one term stands at each of its tokens, and all are summed."""
    ratio = ((log_ratio * active).sum(1, keepdim=True) / active.sum(1, keepdim=True)).exp()
    return -(ratio * advantages[:, None] * active).sum() / len(active)


def cispo_with_a_ratio_that_carries_gradient(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, bound: float
) -> Tensor:
    """−min(ρ, c) A log π per token without the stop-gradient: the weight is trained as well."""
    return -(logps - old_logps).exp().clamp(max=bound) * advantages * logps


def gspo_ratio_as_a_product(log_ratio: Tensor, active: Tensor) -> Tensor:
    """exp of the *sum* of log-ratios: the ratio of whole answers, held against a clip that was made for their mean."""
    return (log_ratio * active).sum(1).exp()


def max_rl_of_any_reward(rewards: Tensor) -> Tensor:
    """(r − mean) / mean for whatever the reward function gives: where right is 1 and wrong −1, the mean may be below 0."""
    return (rewards - rewards.mean()) / rewards.mean()


def teacher_asked_at_temperature_1(
    teacher_logits: Tensor, student_logits: Tensor, token: int, temperature: float
) -> Tensor:
    """On-policy distillation: the tokens come from softmax(z / τ), and the teacher is asked as if they came from softmax(z)."""
    return torch.log_softmax(teacher_logits, -1)[token] - torch.log_softmax(student_logits / temperature, -1)[token]


def dft_whose_weight_carries_gradient(logps: Tensor) -> Tensor:
    """−p log p without the stop-gradient on p: the weight is trained as well."""
    return -logps.exp() * logps


def distillation_with_the_arguments_of_kl_div_swapped(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """F.kl_div(input, target) is KL(target‖input): whoever reads it from left to right gets the other direction."""
    s, t = torch.log_softmax(student_logits, -1), torch.log_softmax(teacher_logits, -1)
    return torch.nn.functional.kl_div(t, s, reduction="sum", log_target=True)


def simpo_on_sums(chosen_logps: Tensor, rejected_logps: Tensor, beta: float, gamma: float) -> Tensor:
    """SimPO without its division by the length: DPO without a reference, and with a margin."""
    return -torch.nn.functional.logsigmoid(beta * (chosen_logps - rejected_logps) - gamma)


def log_odds_by_log1p(log_p: Tensor) -> Tensor:
    """log p − log1p(−exp(log p)), as it stands in public ORPO: in float32 exp of −1e-8 is 1."""
    return log_p - torch.log1p(-log_p.exp())


def kto_z0_of_matched_pairs(log_ratios: Tensor) -> Tensor:
    """max(0, mean r) over the rows themselves, where it should be prompts with answers to *other* prompts."""
    return log_ratios.mean().clamp(min=0).detach()


def kto_z0_with_gradient(mismatched_log_ratios: Tensor) -> Tensor:
    return mismatched_log_ratios.mean().clamp(min=0)


def whiten_that_adds_the_mean_back(values: Tensor) -> Tensor:
    """whiten(shift_mean=True, as one finds it): scaled, not centred."""
    return (values - values.mean()) / values.std(correction=0) + values.mean()


def score_at_the_last_id_that_is_not_pad(hidden: Tensor, input_ids: Tensor, pad_id: int) -> Tensor:
    """hidden [B, S], one number a token. With pad == eos it reads the token before the end token, which taught nothing."""
    last = ((input_ids != pad_id) * torch.arange(1, input_ids.shape[1] + 1)).argmax(1)
    return hidden[torch.arange(len(hidden)), last]


def ending_paid_twice(score: float, value_after: float, value: float, gamma: float = 1.0) -> float:
    """The last δ of a truncated answer: it gets its score *and* the value of what would have come."""
    return score + gamma * value_after - value


def kl_in_the_reward_and_in_the_loss(kl_coef: float, kl_loss_coef: float) -> float:
    """The pull towards the reference that the policy really feels."""
    return kl_coef + kl_loss_coef
