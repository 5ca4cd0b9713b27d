"""Rows of token ids -> the tensors of one micro-batch.

Training rows are padded on the right. Under causal attention no real token can see a pad that comes after it, so the
padding changes nothing (tests/posttrain/test_batch.py shows it on absolute and rotary positions). Which positions
are prompt, completion or padding comes from lengths alone, never from token values: pad == eos is harmless.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """One row before it is a tensor. completion_mask is True on the tokens the model is to learn (or has sampled)."""

    input_ids: list[int]
    completion_mask: list[bool]

    @classmethod
    def of(cls, prompt_ids: list[int], completion_ids: list[int]) -> Example:
        return cls([*prompt_ids, *completion_ids], [False] * len(prompt_ids) + [True] * len(completion_ids))

    def __len__(self) -> int:
        return len(self.input_ids)

    def muted(self) -> Example:
        """The same row with nothing to learn: fills the micro-batch of a process that has run out of rows."""
        return Example(self.input_ids, [False] * len(self))

    @property
    def num_active(self) -> int:
        """How many of its T = S − 1 predictions are scored (the first token is predicted by nothing)."""
        return sum(self.completion_mask[1:])


@dataclass(frozen=True)
class Batch:
    """B rows of S tokens. position_ids are always explicit; attention_mask None means packed rows (which nothing builds yet)."""

    input_ids: Tensor  # [B, S] long
    attention_mask: Tensor | None  # [B, S] bool, True on real tokens
    position_ids: Tensor  # [B, S] long
    completion_mask: Tensor  # [B, S] bool

    @property
    def active(self) -> Tensor:
        """[B, T] bool: which predictions count. Position t predicts token t + 1."""
        return self.completion_mask[:, 1:]

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) if isinstance(v, Tensor) else v for k, v in moved.items()})


def collate(examples: list[Example], pad_id: int) -> Batch:
    """Pad on the right to the longest row. pad_id may equal any other id: nothing looks at it again."""
    lengths = torch.tensor([len(e) for e in examples])
    width = int(lengths.max())
    input_ids = torch.tensor([e.input_ids + [pad_id] * (width - len(e)) for e in examples])
    completion_mask = torch.tensor([e.completion_mask + [False] * (width - len(e)) for e in examples])
    positions = torch.arange(width).expand(len(examples), -1)
    return Batch(input_ids, positions < lengths[:, None], positions.contiguous(), completion_mask)


def pad_values(values: list[Tensor], examples: list[Example], width: int) -> Tensor:
    """One value per completion token -> [B, T], 0 elsewhere: what a rollout or the reference said, laid under the batch.

    values[i] has one entry per active prediction of examples[i], in order; a muted row takes none."""
    out = torch.zeros(len(examples), width - 1)
    for row, (value, example) in enumerate(zip(values, examples, strict=True)):
        if example.num_active:
            out[row, torch.tensor(example.completion_mask[1:]).nonzero().squeeze(-1)] = value
    return out
