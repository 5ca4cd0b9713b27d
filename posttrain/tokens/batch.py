"""Rows of token ids -> the tensors of one micro-batch.

Training rows are padded on the right. Under causal attention no real token can see a pad that comes after it, so the
padding changes nothing (tests/posttrain/tokens/test_batch.py shows it on absolute and rotary positions). Which
positions are prompt, completion or padding comes from lengths alone, never from token values: pad == eos is harmless.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from posttrain.tokens.shared import Shared, Sharing


class _Kept:
    """A field that reads and compares as a list and is kept as an array: 2 bytes for a token (4 in a vocabulary of more
    than 65,536) and 1 for its mask, where lists of Python's numbers take 48."""

    def __init__(self, *codes: str):
        self.codes = codes

    def __set_name__(self, owner: type, name: str) -> None:
        self.place = f"_{name}"

    def __get__(self, row: Any, owner: type | None = None) -> Any:
        if row is None:
            raise AttributeError  # to dataclass: this field has no default
        values = getattr(row, self.place).tolist()
        return list(map(bool, values)) if self.codes == ("b",) else values

    def __set__(self, row: Any, values: Any) -> None:
        for code in self.codes:  # the first that is large enough
            try:
                kept = array(code, values)
            except OverflowError:
                continue
            object.__setattr__(row, self.place, kept)
            return
        raise ValueError(f"{self.place[1:]} holds a number beyond 32 bits")


@dataclass(frozen=True)
class Example:
    """One row before it is a tensor. completion_mask is True on the tokens the model is to learn (or has sampled)."""

    __slots__ = ("_completion_mask", "_input_ids")

    input_ids: list[int] = _Kept("H", "i")  # type: ignore[assignment]
    completion_mask: list[bool] = _Kept("b")  # type: ignore[assignment]

    @classmethod
    def of(cls, prompt_ids: list[int], completion_ids: list[int]) -> Example:
        return cls([*prompt_ids, *completion_ids], [False] * len(prompt_ids) + [True] * len(completion_ids))

    def __len__(self) -> int:
        return len(self._input_ids)

    def __getstate__(self) -> tuple:
        return self._input_ids, self._completion_mask

    def __setstate__(self, state: tuple) -> None:
        for name, value in zip(("_input_ids", "_completion_mask"), state, strict=True):
            object.__setattr__(self, name, value)

    def muted(self) -> Example:
        """The same row with nothing to learn: fills the micro-batch of a process that has run out of rows."""
        return Example(self.input_ids, [False] * len(self))

    @property
    def prompt_length(self) -> int:
        """Tokens before the first that is to be learned."""
        return self._completion_mask.index(1) if 1 in self._completion_mask else len(self)

    @property
    def num_active(self) -> int:
        """How many of its T = S − 1 predictions are scored (the first token is predicted by nothing)."""
        return sum(self._completion_mask[1:])


@dataclass(frozen=True)
class Packed:
    """Several rows laid end to end in one: no padding between them, each sees only itself (restarting positions)."""

    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return sum(map(len, self.examples))

    @property
    def num_active(self) -> int:
        return sum(e.num_active for e in self.examples)

    def muted(self) -> Packed:
        return Packed((self.examples[0].muted(),))


def pack(examples: list[Example], width: int) -> list[Packed]:
    """Rows -> as few packed rows of at most `width` tokens as first-fit-decreasing finds (a row longer than that stays
    alone).

    >>> [[len(e) for e in p.examples] for p in pack([Example([1] * n, [True] * n) for n in (3, 5, 4, 2)], 8)]
    [[5, 3], [4, 2]]
    """
    bins: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=len, reverse=True):
        i = next((i for i, free in enumerate(room) if free >= len(example)), None)
        if i is None:
            bins.append([])
            room.append(width)
            i = -1
        bins[i].append(example)
        room[i] -= len(example)
    return [Packed(tuple(b)) for b in bins]


@dataclass(frozen=True)
class Batch:
    """B rows of S tokens. position_ids are always explicit; attention_mask None means packed rows (collate_packed)."""

    input_ids: Tensor  # [B, S] long
    attention_mask: Tensor | None  # [B, S] bool, True on real tokens
    position_ids: Tensor  # [B, S] long
    completion_mask: Tensor  # [B, S] bool
    shared: Shared | None = None  # the same tokens with each prompt once: what may go through the model instead

    @property
    def active(self) -> Tensor:
        """[B, T] bool: which predictions count. Position t predicts token t + 1."""
        return self.completion_mask[:, 1:]

    def apart(self) -> Self:
        """The same rows for a model that does not read prompts once."""
        return self if self.shared is None else replace(self, shared=None)

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) if hasattr(v, "to") else v for k, v in moved.items()})


def collate(examples: list[Example], pad_id: int, sharing: Sharing | None = None) -> Batch:
    """Pad on the right to the longest row. pad_id may equal any other id: nothing looks at it again.

    sharing: of a run that reads a prompt of several rows once, where that pays."""
    lengths = torch.tensor([len(e) for e in examples])
    width = int(lengths.max())
    input_ids = torch.tensor([e.input_ids + [pad_id] * (width - len(e)) for e in examples])
    completion_mask = torch.tensor([e.completion_mask + [False] * (width - len(e)) for e in examples])
    positions = torch.arange(width).expand(len(examples), -1)
    batch = Batch(input_ids, positions < lengths[:, None], positions.contiguous(), completion_mask)
    if sharing is None:
        return batch
    rows = [(e.input_ids, e.prompt_length) for e in examples]
    return replace(batch, shared=sharing.under(rows, batch.input_ids.numel()))


def collate_packed(packs: list[Packed], pad_id: int) -> Batch:
    """Packed rows. Positions restart at 0 with each example, which is what keeps them apart; the padding behind the
    last one counts as an example of its own. The first token of an example is predicted by nothing, so it is never a
    target."""
    width = max(map(len, packs))
    ids, positions, mask = [], [], []
    for p in packs:
        tail = width - len(p)
        ids.append([t for e in p.examples for t in e.input_ids] + [pad_id] * tail)
        positions.append([i for e in p.examples for i in range(len(e))] + list(range(tail)))
        mask.append([m and i > 0 for e in p.examples for i, m in enumerate(e.completion_mask)] + [False] * tail)
    return Batch(torch.tensor(ids), None, torch.tensor(positions), torch.tensor(mask))


def block_mask(position_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, S] positions of packed rows -> [B, 1, S, S], added to the attention scores: 0 where a token may look.

    For models that do not find the packed rows out from their positions (OPT)."""
    document = (position_ids == 0).cumsum(-1)  # [B, S] 1, 1, 1, 2, 2, 3, …
    may_look = (document[:, :, None] == document[:, None, :]).tril()
    hidden = torch.finfo(dtype).min
    return torch.where(may_look, 0.0, hidden).to(dtype)[:, None]


def stop_probability(logps: Tensor, batch: Batch, stop_ids: list[int]) -> tuple[Tensor, Tensor]:
    """(sum, count) of the probability [0, 1] that was given to the stop token where an answer ends with one: P(stop).

    logps [B, T]. An answer's end is an active prediction whose next one is not; of a multi-turn row, each turn's."""
    ends = batch.active & ~torch.nn.functional.pad(batch.active[:, 1:], (0, 1))
    ends &= torch.isin(batch.input_ids[:, 1:], torch.tensor(stop_ids, device=logps.device))
    return torch.where(ends, logps.detach().float().exp(), 0.0).sum(), ends.sum()


def pad_values(values: list[Tensor], examples: list[Example], width: int) -> Tensor:
    """One value per completion token -> [B, T], 0 elsewhere: what a rollout or the reference said, laid under the
    batch.

    values[i] has one entry per active prediction of examples[i], in order; a muted row takes none."""
    out = torch.zeros(len(examples), width - 1)
    for row, (value, example) in enumerate(zip(values, examples, strict=True)):
        if example.num_active:
            out[row, torch.tensor(example.completion_mask[1:]).nonzero().squeeze(-1)] = value
    return out
