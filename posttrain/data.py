"""config.data -> canonical rows: sources.py says where rows come from, formats.py what they mean, this file puts them together.

Several sources are mixed here, rows that teach nothing are counted, every problem is told with its row. `rows` given from
Python go through the same door.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from posttrain import sources
from posttrain.errors import UserError
from posttrain.formats import NothingToLearn, recognise

MOST_SKIPPED = 0.05  # share of rows that may be left out and counted; above it the data is refused
SHUFFLE_BUFFER = 1_000  # rows of a stream among which the next one is drawn
Place = tuple[str, int]  # (source, row number from 1)


@dataclass(frozen=True)
class Rows:
    rows: list[dict]
    places: list[Place]
    read: list[str]  # "400 rows as ShareGPT conversations from chats.json", one per source
    skipped: list[str]  # "row 87: 'chosen' is empty …": rows that teach nothing, left out

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return "{}, row {}".format(*self.places[index])


def load_rows(data, method: str, rows: list[dict] | None = None) -> Rows | Stream:
    """The canonical rows for "sft", "dpo" or "grpo", from `rows` or from config.data; a Stream with data.streaming."""
    if rows is None and data.name is None:
        raise UserError("data.name is missing: give a file, a data set, or rows=[…] from Python")
    names = [data.name] if isinstance(data.name, str) else data.name
    if rows is None and data.streaming:
        return Stream(data, names, method)
    if rows is not None:
        parts: dict[str, Sequence[dict]] = {"rows": list(rows)}
    else:
        parts = {name: sources.read(name, subset=data.subset, split=data.split) for name in names}
    for source, raw in parts.items():
        if not len(raw):
            raise UserError(f"{source}: no rows")

    out, places, read, skipped = [], [], [], []
    weights = data.weights if rows is None else None
    chosen = mix([len(raw) for raw in parts.values()], weights, data.max_samples, data.seed)
    for (source, raw), indices in zip(parts.items(), chosen, strict=True):
        reader = Reader(raw[0], method, source, data.system_prompt)
        for index in indices:
            try:
                out.append(reader(raw[index], index + 1))
            except NothingToLearn as problem:
                skipped.append(f"row {index + 1}: {problem}")
                continue
            places.append((source, index + 1))
        read.append(f"{len(indices):,} rows as {reader.format} from {source}")
        if data.subset is not None and rows is None and sources.is_local(source):
            read[-1] += f" (data.subset {data.subset} means a part of a hub set: not used here)"
    refuse_too_many_skipped(skipped, sum(map(len, chosen)), " and ".join(parts))
    return Rows(out, places, read, skipped)


class Reader:
    """Raw row -> canonical row, for one source. NothingToLearn passes through, everything else is told with its row."""

    def __init__(self, first: object, method: str, source: str, system_prompt: str | None):
        self.source, self.method, self.system_prompt = source, method, system_prompt
        self._refuse_other_than_columns(first, 1)
        self.convert, self.format = recognise(first, method, source)

    def __call__(self, row: dict, number: int) -> dict:
        self._refuse_other_than_columns(row, number)
        try:
            if row.get("tools") and self.method != "grpo":
                raise ValueError("the column 'tools' is not supported: nothing here would show the tools to the model")
            row = self.convert(row)
        except NothingToLearn:
            raise
        except KeyError as missing:
            found = ", ".join(map(str, row))
            raise UserError(f"{self.source}, row {number}: column {missing} is missing; found {found}") from None
        except ValueError as problem:
            raise UserError(f"{self.source}, row {number}: {problem}") from None
        if self.system_prompt:
            for key in ("messages", "prompt"):
                if key in row and row[key][0]["role"] != "system":
                    row[key] = [{"role": "system", "content": self.system_prompt}, *row[key]]
                    row |= {"learn_from": row["learn_from"] + 1} if "learn_from" in row else {}
        return row

    def _refuse_other_than_columns(self, row: object, number: int) -> None:
        if not isinstance(row, dict):
            raise UserError(
                f"{self.source}, row {number}: expected an object with named columns, found {type(row).__name__}"
            )


def refuse_too_many_skipped(skipped: list[str], total: int, source: str) -> None:
    if len(skipped) > MOST_SKIPPED * total:
        more = f" ({len(skipped)} such rows of {total}; up to {MOST_SKIPPED:.0%} would be left out and counted)"
        raise UserError(f"{source}, {skipped[0]}{more if total > 1 else ''}")


# ---------------------------------------------------------------- several sources


def mix(sizes: list[int], weights: list[float] | None, max_samples: int | None, seed: int) -> list[Sequence[int]]:
    """Which rows of each source are used.

    Without weights: all. With weights: as many of each as keeps the shares until one source runs out, drawn by the seed.
    max_samples: of each source the first of these, in proportion.

    >>> [len(rows) for rows in mix([100, 30], [1, 1], None, 0)], [len(rows) for rows in mix([100, 30], None, 13, 0)]
    ([30, 30], [10, 3])
    """
    counts = list(sizes)
    if weights is not None:
        fits = min(size / weight for size, weight in zip(sizes, weights, strict=True))
        counts = [min(size, max(1, int(weight * fits + 1e-9))) for size, weight in zip(sizes, weights, strict=True)]
    rng = random.Random(seed)
    chosen = [
        range(size) if count == size else sorted(rng.sample(range(size), count))
        for size, count in zip(sizes, counts, strict=True)
    ]
    if max_samples is None or max_samples >= sum(counts):
        return chosen
    exact = [max_samples * count / sum(counts) for count in counts]
    kept = [int(x) for x in exact]
    for i in sorted(range(len(exact)), key=lambda i: kept[i] - exact[i])[: max_samples - sum(kept)]:
        kept[i] += 1  # the largest remainders get the rows that rounding down has left
    return [rows[:n] for rows, n in zip(chosen, kept, strict=True)]


# ---------------------------------------------------------------- streams


class Stream:
    """Rows that are read while training, shuffled through a buffer. The order is a pure function of (data.seed, epoch)."""

    def __init__(self, data, names: list[str], method: str):
        self.data, self.names, self.method = data, names, method
        self.skipped: list[str] = []
        self.seen = 0
        self.readers = {}
        for name in names:
            first = next(iter(self._raw(name)), None)
            if first is None:
                raise UserError(f"{name}: no rows")
            self.readers[name] = Reader(first, method, name, data.system_prompt)
        self.read = [f"a stream of {reader.format} from {name}" for name, reader in self.readers.items()]

    def _raw(self, name: str) -> Iterator[dict]:
        return sources.iterate(name, subset=self.data.subset, split=self.data.split)

    def head(self, count: int) -> Rows:
        """The first few rows, for looking at."""
        rows, places = [], []
        for row, place in itertools.islice(self._canonical(0), count):
            rows.append(row)
            places.append(place)
        return Rows(rows, places, self.read, [])

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
        for name, index, raw in itertools.islice(self._mixed(number), self.data.max_samples):
            self.seen += 1
            try:
                yield self.readers[name](raw, index), (name, index)
            except NothingToLearn as problem:
                self.skipped.append(f"row {index}: {problem}")
                if self.seen > 200:
                    refuse_too_many_skipped(self.skipped, self.seen, name)

    def _mixed(self, number: int) -> Iterator[tuple[str, int, dict]]:
        """With weights: each next row from a source drawn by them, until one runs out. Without: in turn, until all have."""
        rng = random.Random(f"mix {self.data.seed} {number}")
        open_ = {name: enumerate(self._raw(name), start=1) for name in self.names}
        while open_:
            turn = rng.choices(self.names, self.data.weights) if self.data.weights else list(open_)
            for name in turn:
                if (item := next(open_[name], None)) is not None:
                    yield name, *item
                elif self.data.weights:
                    return
                else:
                    del open_[name]
