"""What the tokens of GRPO's answers are credited with: reward, advantage over the group or by a teacher, importance
weight.

The mathematics stands in losses/advantages.py, overlong.py, on_policy_distillation.py and mismatch.py; here the
config's keys choose.

Importance weights multiply the advantage and not the token's weight in the loss: a GSPO answer keeps its one vote, and
the KL term stays that of the states which were visited. This project's own sampler is the trainer's model, so the
weights are 1 up to rounding (bf16, 8-bit products); they matter once something else has sampled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from losses.advantages import (
    batch_advantages,
    batch_stats,
    group_relative_advantages,
    leave_one_out_advantages,
    max_rl_advantages,
)
from losses.mismatch import masked_importance_weights, truncated_importance_weights
from losses.on_policy_distillation import teacher_advantages
from losses.overlong import soft_overlong_punishment
from posttrain.rollouts.answers import Answer
from posttrain.rollouts.scoring import Metrics, refuse_graded


def rewards_of(answers: list[Answer], grpo: Any) -> Tensor:
    """[N]: what the scorer said of each answer, less what it pays for coming near the end."""
    rewards = torch.tensor([answer.reward for answer in answers])
    if grpo.overlong_cache is None:
        return rewards
    lengths = torch.tensor([answer.example.num_active for answer in answers])
    return rewards + soft_overlong_punishment(lengths, grpo.max_new_tokens, grpo.overlong_cache)


def about_groups(answers: list[Answer], grpo: Any) -> Metrics:
    """How many groups teach nothing, and what was paid for length, as (sum, count). A teacher knows no groups."""
    if not grpo.learns_from_rewards:
        return {}
    rewards = rewards_of(answers, grpo)
    groups = rewards.view(-1, grpo.group_size)
    told: Metrics = {"dead_groups": ((groups.amax(1) == groups.amin(1)).sum().item(), len(groups))}
    if grpo.overlong_cache is not None:
        paid = rewards - torch.tensor([answer.reward for answer in answers])
        told["overlong_punishment"] = (paid.sum().item(), len(answers))
    return told


def advantages_of(answers: list[Answer], run: Any) -> Tensor:
    """[N], group by group: how much better each answer is than its group."""
    grpo, size = run.config.grpo, run.config.grpo.group_size
    rewards = rewards_of(answers, grpo)
    if grpo.advantage == "leave_one_out":
        return leave_one_out_advantages(rewards, size)
    if grpo.advantage == "max_rl":
        refuse_graded(rewards.tolist(), "grpo.advantage: max_rl")
        return max_rl_advantages(rewards, size)
    if grpo.advantage == "batch":  # of all processes
        total, squares, count = (run.sum_over_processes(part) for part in batch_stats(rewards, size))
        return batch_advantages(rewards, size, stats=(total, squares, count))
    return group_relative_advantages(rewards, size, scale=grpo.advantage_scale)


def credited(answers: list[Answer], advantages: Tensor) -> list[Answer]:
    """Every token of an answer gets the answer's advantage, [N] -> the column advantages."""
    return [
        answer.with_columns({"advantages": torch.full_like(answer.columns["sampler_logps"], advantage)})
        for answer, advantage in zip(answers, advantages.tolist(), strict=True)
    ]


def taught(answers: list[Answer]) -> tuple[list[Answer], Metrics]:
    """Answers with the column teacher_logps -> with an advantage for each token; and what to log: teacher_kl, the mean
    of −A. The policy's own log-probs are old_logps where the trainer was asked for them, else the sampler's."""
    out, total, count = [], 0.0, 0
    for answer in answers:
        teacher = answer.columns["teacher_logps"]
        # (of a muted answer nobody is asked about any token, but the sampler has said its own)
        student = answer.columns.get("old_logps", answer.columns["sampler_logps"])[: len(teacher)]
        active = torch.ones_like(teacher, dtype=torch.bool)
        advantages = teacher_advantages(teacher[None], student[None], active[None])[0]  # [tokens of the completion]
        out.append(answer.with_columns({"advantages": advantages}))
        total, count = total - advantages.sum().item(), count + len(advantages)
    return out, {"teacher_kl": (total, count)}


def weigh(answers: list[Answer], grpo: Any) -> tuple[list[Answer], Metrics]:
    """Answers with the columns advantages, old_logps (the trainer's) and sampler_logps -> with advantages times the
    weights of grpo.importance_weights; and what to log. A muted answer has no token to weigh."""
    out, total, cut, count = [], 0.0, 0, 0
    for answer in answers:
        if answer.example.num_active:
            weights = importance_weights(answer, grpo)
            answer = answer.with_columns({"advantages": answer.columns["advantages"] * weights})
            total, count = total + weights.sum().item(), count + len(weights)
            cut += int((weights == (grpo.importance_cap if grpo.importance_weights == "truncated" else 0)).sum())
        out.append(answer)
    return out, {"importance_weight": (total, count), "importance_cut": (cut, count)}


def importance_weights(answer: Answer, grpo: Any) -> Tensor:
    """w [tokens of the completion]."""
    trainer, sampler = answer.columns["old_logps"][None], answer.columns["sampler_logps"][None]  # [1, T]
    active = torch.ones_like(trainer, dtype=torch.bool)
    if grpo.importance_weights == "truncated":
        return truncated_importance_weights(trainer, sampler, active, cap=grpo.importance_cap)[0]
    low, high, level = grpo.importance_low, grpo.importance_high, grpo.importance_level
    return masked_importance_weights(trainer, sampler, active, low=low, high=high, level=level)[0]
