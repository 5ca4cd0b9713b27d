"""Rows that are read while training, for sets that do not fit in memory."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

from posttrain.data import sources
from posttrain.data.messages import BadRow
from posttrain.data.reader import LOOK, Place, Reader, Rows, refuse_bad, refuse_too_many_bad
from posttrain.errors import UserError

FIRST = 200  # rows after which it can be said that too many are bad
SHUFFLE_BUFFER = 1_000  # rows of a stream among which the next one is drawn


class Stream:
    """Rows that are read while training, shuffled through a buffer. The order is a function of (data.seed, epoch)."""

    def __init__(self, data: Any, names: list[str], method: str):
        self.data, self.names, self.method = data, names, method
        self.bad: list[str] = []  # so far
        self.readers = {}
        for name in names:
            first = [row for row, _ in itertools.islice(self._raw(name), LOOK)]
            if not first:
                raise UserError(f"{name}: no rows")
            self.readers[name] = Reader(first, method, name, data)
        self.read = [f"a stream of {reader.format} from {name}{reader.unused}" for name, reader in self.readers.items()]

    def _raw(self, name: str) -> Iterator[tuple[dict, Place]]:
        return sources.iterate(name, subset=self.data.subset, split=self.data.split, task=self.data.task)

    def head(self, count: int) -> Rows:
        """The first rows, for looking at."""
        rows, places, bad = [], [], []
        for name, raw, place in itertools.islice(self._mixed(0), min(count, self.data.max_samples or count)):
            try:
                rows.append(self.readers[name](raw, place))
                places.append(place)
            except BadRow as problem:
                bad.append(refuse_bad(problem, place, self.data, self.method))
        return Rows(rows, places, self.read, bad)

    def epoch(self, number: int) -> Iterator[tuple[dict, Place]]:
        rng, buffer = random.Random(f"{self.data.seed} {number}"), []
        for item in self._canonical(number):
            buffer.append(item)
            if len(buffer) > SHUFFLE_BUFFER:
                i = rng.randrange(len(buffer))
                buffer[i], buffer[-1] = buffer[-1], buffer[i]
                yield buffer.pop()
        rng.shuffle(buffer)
        yield from buffer

    def _canonical(self, number: int) -> Iterator[tuple[dict, Place]]:
        before = len(self.bad)
        for seen, (name, raw, place) in enumerate(itertools.islice(self._mixed(number), self.data.max_samples), 1):
            try:
                yield self.readers[name](raw, place), place
            except BadRow as problem:
                self.bad.append(refuse_bad(problem, place, self.data, self.method))
                if seen >= FIRST:
                    refuse_too_many_bad(self.bad[before:], seen)

    def _mixed(self, number: int) -> Iterator[tuple[str, dict, Place]]:
        """With weights: each next row from a source drawn by them, until one runs out. Without: in turn, until all
        have."""
        rng = random.Random(f"mix {self.data.seed} {number}")
        open_ = {name: self._raw(name) for name in self.names}
        while open_:
            turn = rng.choices(self.names, self.data.weights) if self.data.weights else list(open_)
            for name in turn:
                if (item := next(open_[name], None)) is not None:
                    yield name, *item
                elif self.data.weights:
                    return
                else:
                    del open_[name]
