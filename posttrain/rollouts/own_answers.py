"""The student's own answers in the place of given ones: which rows of a step are asked, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from posttrain.rollouts.sampling import draw_uniforms, sample
from posttrain.tokens import template
from posttrain.tokens.batch import Example


@dataclass(frozen=True)
class Row:
    """A row of a step. draw: which of the step's rows of uniforms its own answer is sampled with; None: the given one
    is learned."""

    example: Example
    draw: int | None = None

    def __len__(self) -> int:
        return len(self.example)

    def muted(self) -> Row:
        return Row(self.example.muted())

    @property
    def prompt_ids(self) -> list[int]:
        """What stands before the first token that is learned."""
        return self.example.input_ids[: self.example.prompt_length]


def unanswered(prompt_ids: list[int], row: dict) -> Example:
    """A prompt that came without an answer: there is nothing to learn from it until the student has given its own."""
    return Example.of(prompt_ids, [])


def chosen(examples: list[Example], share: float, room: int, *, seed: int, step: int) -> list[Row]:
    """The rows of one step, `share` of them to be asked: drawn by (seed, step) among those whose prompt has at least
    one token and at most `room`. The same on every process."""
    rows = [Row(example) for example in examples]
    can = [i for i, row in enumerate(rows) if 0 < len(row.prompt_ids) <= room]
    generator = torch.Generator().manual_seed((seed + 1) * 1_000_003 + step)
    picked = {can[i] for i in torch.randperm(len(can), generator=generator)[: round(share * len(rows))].tolist()}
    return [replace(row, draw=i) if i in picked else row for i, row in enumerate(rows)]


def answered(
    window: list[list[Row]], model: Any, tokenizer: Any, distill: Any, *, rows: int, seed: int, step: int
) -> tuple[list[list[Example]], dict[str, tuple[float, float]]]:
    """This process's micro-batches with the sampled answers in them, and what they were like, as (sum, count).

    rows: of the whole step, all processes: each takes its own of the step's uniforms, as in every rollout."""
    asked = [row for micro in window for row in micro if row.draw is not None]
    sampled: dict[int, Example] = {}
    told = {"completion_length": (0.0, 0.0), "finished": (0.0, 0.0)}
    if asked:
        rollout = sample(
            model,
            [row.prompt_ids for row in asked],
            max_new_tokens=distill.max_new_tokens,
            temperature=distill.temperature,
            stop_ids=template.stop_ids(tokenizer),
            pad_id=tokenizer.pad_token_id,
            uniforms=draw_uniforms(rows, distill.max_new_tokens, seed=seed, step=step)[[row.draw for row in asked]],
        )
        sampled = dict(zip((row.draw for row in asked), rollout.examples(), strict=True))
        lengths = sum(map(len, rollout.completion_ids))
        told = {"completion_length": (lengths, len(asked)), "finished": (sum(rollout.finished), len(asked))}
    return [[row.example if row.draw is None else sampled[row.draw] for row in micro] for micro in window], told
