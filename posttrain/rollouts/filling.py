"""Dynamic sampling: one rollout after the other, until there are enough groups that teach something.

A group that is all right or all wrong has advantages of 0. With `grpo.dynamic_sampling` it is left out, and the next
prompts are asked, until `prompts_per_step` groups are neither; what is sampled beyond that is thrown away (it would be
off policy in the next step). After `grpo.max_resamples` further rollouts the step is filled up with groups that teach
nothing, so it always has the same size, and every token of it the same weight.

Source: DAPO, Yu et al. 2025, arXiv 2503.14476, §3.2, the constraint of its eq. 8: 0 < right answers < G.
"""

from __future__ import annotations

from typing import Any

from posttrain.rollouts.answers import Answer
from posttrain.rollouts.scoring import Metrics, refuse_graded


class Filling:
    """The groups of a step that is not full yet. Each process holds those that it has sampled."""

    def __init__(self, run: Any, grpo: Any):
        self.run, self.grpo = run, grpo
        self._empty()

    def _empty(self) -> None:
        self.rollouts, self.alive = 0, 0  # of all processes
        self.told: Metrics = {}
        # {(does it teach nothing, number of the rollout, prompt): its answers}: in this order they are taken
        self.groups: dict[tuple[bool, int, int], list[Answer]] = {}

    def add(self, answers: list[Answer], told: Metrics, own: list[int], wanted: int) -> bool:
        """One more rollout of `wanted` prompts, of which this process has asked its own: is the step full now (or no
        further rollout allowed)?"""
        refuse_graded([answer.reward for answer in answers], "grpo.dynamic_sampling", signed=True)
        size = self.grpo.group_size
        for i, prompt in enumerate(own):
            group = answers[i * size : (i + 1) * size]
            teaches_nothing = len({answer.reward for answer in group}) == 1
            self.groups[teaches_nothing, self.rollouts, prompt] = group
        for name, (total, count) in told.items():
            before = self.told.get(name, (0.0, 0))
            self.told[name] = (before[0] + total, before[1] + count)
        self.rollouts += 1
        self.alive = int(self.run.sum_over_processes(sum(not dead for dead, *_ in self.groups)))
        return self.alive >= wanted or self.rollouts > self.grpo.max_resamples

    def take(self, own: list[int], wanted: int) -> tuple[list[Answer], Metrics]:
        """(this process's share of the step: the groups number own[0], own[1] … of `wanted`; what to log of all that
        was sampled)."""
        keys = sorted(key for of_one in self.run.gather(list(self.groups)) for key in of_one)[:wanted]
        held = {key: self.groups[key] for key in keys if key in self.groups}
        groups = {key: group for of_one in self.run.gather(held) for key, group in of_one.items()}
        answers = [answer for i in own for answer in groups[keys[i]]]
        told = self.told | {  # the same numbers on every process: their mean is what is logged
            "resamples": (self.rollouts - 1, 1),
            "groups_left_over": (max(self.alive - wanted, 0), 1),
            "groups_missing": (max(wanted - self.alive, 0), 1),
        }
        self._empty()
        return answers, told
