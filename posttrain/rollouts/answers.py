"""Sampled answers on their way through an update, with what was said of each of their tokens.

A column holds one number per completion token (log-probs, values, advantages …). `lay_out` puts answers and columns
into one batch, where batch["old_logps"] is [B, T], under the tokens it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from posttrain.rollouts.sampling import Rollout
from posttrain.tokens.batch import Batch, Example, collate
from posttrain.tokens.shared import Sharing


@dataclass(frozen=True)
class Answer:
    """One sampled completion behind its prompt. columns: {name: [tokens of the completion]}, float32 on the CPU."""

    example: Example
    columns: dict[str, Tensor]
    reward: float  # what the scorer said of it; 0 where a teacher is learned from instead
    finished: bool  # did the model end its turn?

    def __len__(self) -> int:
        return len(self.example)

    def muted(self) -> Answer:
        return replace(self, example=self.example.muted())

    def with_columns(self, columns: dict[str, Tensor]) -> Answer:
        return replace(self, columns=self.columns | columns)


def sampled(rollout: Rollout, rewards: list[float]) -> list[Answer]:
    """The answers of a rollout, each with the log-probs that the sampler gave its own tokens."""
    parts = zip(rollout.examples(), rollout.logps, rewards, rollout.finished, strict=True)
    return [Answer(example, {"sampler_logps": logps}, reward, done) for example, logps, reward, done in parts]


@dataclass(frozen=True)
class AnswerBatch(Batch):
    # {name: [B, T]}, 0 where no completion token is predicted, and in muted rows
    columns: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]

    def to(self, device: torch.device | str) -> AnswerBatch:
        moved = super().to(device)
        return replace(moved, columns={name: column.to(device) for name, column in self.columns.items()})


def lay_out(answers: list[Answer], pad_id: int, sharing: Sharing | None = None) -> AnswerBatch:
    batch = collate([answer.example for answer in answers], pad_id, sharing)
    columns = {
        name: _under_the_tokens([answer.columns[name] for answer in answers], batch.active)
        for name in answers[0].columns
    }
    return AnswerBatch(**vars(batch), columns=columns)


def _under_the_tokens(values: list[Tensor], active: Tensor) -> Tensor:
    """values[i] has one entry per active prediction of row i, in order; a muted row takes none."""
    out = torch.zeros(active.shape)
    for row, value in enumerate(values):
        where = active[row].nonzero().squeeze(-1)
        if len(where):
            out[row, where] = value
    return out


@torch.no_grad()
def ask_all(
    answers: list[Answer], run: Any, pad_id: int, forward: Callable[[Batch], dict[str, Tensor]]
) -> list[Answer]:
    """Every answer with the columns that `forward(batch) -> {name: [B, T]}` gives: one pass, longest together."""
    out, size, sharing = list(answers), run.training.micro_batch_size, run.sharing
    order = sorted(range(len(answers)), key=lambda i: len(answers[i]), reverse=True)
    if sharing.on:
        order = list(range(len(answers)))  # as they were sampled: group by group
    for start in range(0, len(order), size):
        picked = order[start : start + size]
        batch = collate([answers[i].example for i in picked], pad_id, sharing).to(run.device)
        with run.parallel.autocast():
            columns = forward(batch)
        for row, i in enumerate(picked):
            own = batch.active[row]
            out[i] = out[i].with_columns({n: column[row][own].float().cpu() for n, column in columns.items()})
    return out


def in_flight(saved: dict[str, Any], own: list[int]) -> list[Answer]:
    """This process's answers of the rollout that a checkpoint was written in the middle of."""
    dicts = [answer for prompt in own for answer in saved["answers"][prompt]]
    return [Answer(**answer | {"example": Example(**answer["example"])}) for answer in dicts]


def mean_gap(answers: list[Answer], one: str, other: str, run: Any) -> float:
    """Mean of column `one` − column `other` per completion token, over the answers of all processes."""
    gap = sum((a.columns[one] - a.columns[other]).sum().item() for a in answers)
    count = sum(a.example.num_active for a in answers)
    return run.sum_over_processes(gap) / run.sum_over_processes(count)
