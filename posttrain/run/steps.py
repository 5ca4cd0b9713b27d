"""Which rows make an optimiser step, and which micro-batches make it up: pure functions of (rows, seed, epoch,
process).

Rows of like length go together in a micro-batch, which saves padding and, the loss being a sum, changes nothing. Every
process gets the same number of micro-batches, at least one: one that has run out of rows gets a muted row, which adds
exactly 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from posttrain.tokens.batch import Packed, pack


def in_order(items: Any, seed: int, epoch: int) -> Iterator:
    """The items of an epoch: a list permuted by (seed, epoch), a stream as it shuffles itself."""
    if isinstance(items, list):
        return (items[i] for i in epoch_order(len(items), seed, epoch))
    return items.epoch(epoch)


def batched(items: Iterator, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one perhaps shorter (itertools.batched comes with Python 3.12)."""
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()


def shares(rows: list, processes: int) -> list[list]:
    """Each process's rows of one step, longest first: dealt out in turn, so that all get about as many tokens."""
    by_length = sorted(rows, key=len, reverse=True)
    return [by_length[p::processes] for p in range(processes)]


def cut(mine: list, most: int, size: int, filler: Any, *, by_length: bool = True) -> list[list]:
    """This process's rows -> micro-batches of `size`, as many as the process with the `most` rows has.

    by_length: those of like length together; else in the order in which they come."""
    count = math.ceil(most / size)
    mine = sorted(mine, key=len, reverse=True) if by_length else list(mine)
    mine += [filler.muted()] * max(0, (count - 1) * size + 1 - len(mine))
    return [mine[i * size : (i + 1) * size] for i in range(count)]


def micro_batches(rows: list, process: int, processes: int, size: int, pack_to: int | None = None) -> list[list]:
    """The rows of one step (the same list on every process) -> one process's micro-batches of `size` rows.

    pack_to: lay its rows end to end in packed rows of that many tokens, and take `size` of those at a time."""
    parts, filler = shares(rows, processes), rows[0]
    if pack_to is not None:
        parts, filler = [pack(share, pack_to) for share in parts], Packed((rows[0],))
    return cut(parts[process], max(map(len, parts)), size, filler)


# ---------------------------------------------------------------- of a rollout


def minibatches(rows: int, count: int, epochs: int, seed: int, rollout: int) -> Iterator[list[int]]:
    """Which of a rollout's rows each of its updates takes: `epochs` passes, each cut into `count`.

    Drawn over the whole rollout, so it is the same for any number of processes."""
    for epoch in range(epochs):
        order = epoch_order(rows, seed + 1, rollout * epochs + epoch)
        yield from batched(iter(order), math.ceil(rows / count))


def group_by_group(rows: list[int], group_size: int, length: Callable[[int], int]) -> list[int]:
    """Rows of a rollout, those of one group together, which read their prompt once: longest group first, and in it the
    longest row."""
    longest: dict[int, int] = {}
    for row in rows:
        longest[row // group_size] = max(length(row), longest.get(row // group_size, 0))
    return sorted(rows, key=lambda row: (-longest[row // group_size], row // group_size, -length(row)))


def own_share(picked: list[int], own: list[int], group_size: int, processes: int) -> tuple[list[int], int]:
    """(of this process's answers, which are among the picked rows; how many the process with the most has).

    own: the prompts of this process, whose answers it holds group by group."""
    place = {prompt * group_size + k: i * group_size + k for i, prompt in enumerate(own) for k in range(group_size)}
    owners = [row // group_size % processes for row in picked]
    return [place[row] for row in picked if row in place], max(owners.count(p) for p in range(processes))
