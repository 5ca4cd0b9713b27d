"""config.data -> canonical rows: sources.py says where rows come from, formats.py what they mean, this file puts them together.

Several sources are mixed here, rows that teach nothing are counted, every problem is told with its row. `rows` given from
Python go through the same door.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from posttrain.data import sources
from posttrain.data.formats import NothingToLearn, recognise
from posttrain.errors import UserError

MOST_SKIPPED = 0.05  # share of rows that may be left out and counted; above it the data is refused
LOOK = 100  # rows among which the first with filled columns shows the format
SHUFFLE_BUFFER = 1_000  # rows of a stream among which the next one is drawn
Place = tuple[str, int]  # (source, row number from 1)


@dataclass(frozen=True)
class Rows:
    rows: list[dict]
    places: list[Place]
    read: list[str]  # "400 rows as ShareGPT conversations from chats.json", one per source
    skipped: list[str]  # "pairs.jsonl, row 87: 'chosen' is empty …": rows that teach nothing, left out

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return where(self.places[index])


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
        reader = Reader([raw[i] for i in range(min(LOOK, len(raw)))], method, source, data.system_prompt)
        for index in indices:
            place = raw.place(index) if isinstance(raw, sources.Shards) else (source, index + 1)
            try:
                out.append(reader(raw[index], place))
            except NothingToLearn as problem:
                skipped.append(f"{where(place)}: {problem}")
                continue
            places.append(place)
        read.append(f"{len(indices):,} rows as {reader.format} from {source}")
        if isinstance(raw, sources.Shards):
            read[-1] += f" ({', '.join(file.name for file in raw.files[:4])}{', …' if len(raw.files) > 4 else ''})"
        if data.subset is not None and rows is None and sources.is_local(source):
            read[-1] += f" (data.subset {data.subset} means a part of a hub set: not used here)"
    refuse_too_many_skipped(skipped, sum(map(len, chosen)))
    return Rows(out, places, read, skipped)


def where(place: Place) -> str:
    return "{}, row {}".format(*place)


class Reader:
    """Raw row -> canonical row, for one source. NothingToLearn passes through, everything else is told with its row."""

    def __init__(self, first: list, method: str, source: str, system_prompt: str | None):
        """first: the first rows; the format is that of the first whose columns are not empty."""
        self.method, self.system_prompt = method, system_prompt
        problems = []
        for number, row in enumerate(first, start=1):
            _refuse_other_than_columns(row, (source, number))
            try:
                self.convert, self.format = recognise(row, method, source)
                return
            except UserError as problem:
                problems.append(problem)
        raise problems[0]

    def __call__(self, row: dict, place: Place) -> dict:
        _refuse_other_than_columns(row, place)
        try:
            if row.get("tools") and self.method not in ("grpo", "ppo"):
                raise ValueError("the column 'tools' is not supported: nothing here would show the tools to the model")
            canonical = self.convert(row)
        except NothingToLearn:
            raise
        except KeyError as missing:
            found = ", ".join(map(str, row))
            raise UserError(f"{where(place)}: column {missing} is missing; found {found}") from None
        except ValueError as problem:
            advice = f"mend it, or leave such rows out with python -m posttrain.curate clean … --for {self.method}"
            raise UserError(f"{where(place)}: {problem} ({advice})") from None
        own = next(
            (row[c] for c in ("system", "system_prompt") if isinstance(row.get(c), str) and row[c].strip()), None
        )
        return _with_system(canonical, own or self.system_prompt)


def _with_system(row: dict, system: str | None) -> dict:
    """Put before a conversation that has no system message of its own: the row's system column, else data.system_prompt."""
    for key in ("messages", "prompt"):
        if system and key in row and row[key][0]["role"] != "system":
            row[key] = [{"role": "system", "content": system}, *row[key]]
            row |= {"learn_from": row["learn_from"] + 1} if "learn_from" in row else {}
    return row


def _refuse_other_than_columns(row: object, place: Place) -> None:
    if not isinstance(row, dict):
        raise UserError(f"{where(place)}: expected an object with named columns, found {type(row).__name__}")


def refuse_too_many_skipped(skipped: list[str], total: int) -> None:
    if len(skipped) > MOST_SKIPPED * total:
        more = f" ({len(skipped)} such rows of {total}; up to {MOST_SKIPPED:.0%} would be left out and counted)"
        raise UserError(f"{skipped[0]}{more if total > 1 else ''}")


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
        self.skipped: list[str] = []  # so far
        self.readers = {}
        for name in names:
            first = [row for row, _ in itertools.islice(self._raw(name), LOOK)]
            if not first:
                raise UserError(f"{name}: no rows")
            self.readers[name] = Reader(first, method, name, data.system_prompt)
        self.read = [f"a stream of {reader.format} from {name}" for name, reader in self.readers.items()]

    def _raw(self, name: str) -> Iterator[tuple[dict, Place]]:
        return sources.iterate(name, subset=self.data.subset, split=self.data.split)

    def head(self, count: int) -> Rows:
        """The first rows, for looking at."""
        rows, places, skipped = [], [], []
        for name, raw, place in itertools.islice(self._mixed(0), min(count, self.data.max_samples or count)):
            try:
                rows.append(self.readers[name](raw, place))
                places.append(place)
            except NothingToLearn as problem:
                skipped.append(f"{where(place)}: {problem}")
        return Rows(rows, places, self.read, skipped)

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
        for name, raw, place in itertools.islice(self._mixed(number), self.data.max_samples):
            try:
                yield self.readers[name](raw, place), place
            except NothingToLearn as problem:
                self.skipped.append(f"{where(place)}: {problem}")

    def _mixed(self, number: int) -> Iterator[tuple[str, dict, Place]]:
        """With weights: each next row from a source drawn by them, until one runs out. Without: in turn, until all have."""
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
