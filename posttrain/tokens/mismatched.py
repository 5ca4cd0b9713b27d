"""Judged answers for KTO, each prompt with another row's answer beside its own: what z0 is measured on.

The rows of a step are the same list on every process, so the partners are, too: they do not depend on how the step is
cut into micro-batches or dealt out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from posttrain.tokens.batch import Example
from posttrain.tokens.examples import Labelled


@dataclass(frozen=True)
class Judged:
    """A judged answer, and the same prompt with the answer to another one (muted where the step has no other)."""

    example: Example
    desirable: bool
    mismatched: Example

    def __len__(self) -> int:
        return max(len(self.example), len(self.mismatched))

    @property
    def counts(self) -> bool:
        return self.example.num_active > 0

    def muted(self) -> Judged:
        return replace(self, example=self.example.muted(), mismatched=self.mismatched.muted())


def mismatched(rows: list[Labelled], limit: int) -> list[Judged]:
    """The rows of one step, each with the answer of the next row (the first after the last) whose prompt is another.

    limit: longest row in tokens; a longer answer is cut there. Rows made from preference pairs come in twos with one
    prompt: the answer of such a neighbour would be no mismatch.
    """
    parts = [_prompt_and_answer(row.example) for row in rows]
    out = []
    for i, (row, (prompt, _)) in enumerate(zip(rows, parts, strict=True)):
        others = (parts[(i + k) % len(parts)] for k in range(1, len(parts)))
        answer = next((answer for other, answer in others if other != prompt), None)
        if answer is None:
            beside = row.example.muted()
        else:
            beside = Example.of(prompt, answer[: max(1, limit - len(prompt))])
        out.append(Judged(row.example, row.label > 0.5, beside))
    return out


def _prompt_and_answer(example: Example) -> tuple[list[int], list[int]]:
    begin = example.completion_mask.index(True)
    return example.input_ids[:begin], example.input_ids[begin:]
