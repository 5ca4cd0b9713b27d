"""config.data -> canonical rows: sources.py says where rows come from, reader.py what each means, this file puts them
together.

Several sources are mixed here, rows that no loop can use are left out and counted. `rows` given from Python go through
the same door.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from posttrain.data import sources
from posttrain.data.messages import BadRow
from posttrain.data.reader import LOOK, Reader, Rows, refuse_bad, refuse_too_many_bad
from posttrain.data.stream import Stream
from posttrain.errors import UserError


def load_rows(data: Any, method: str, rows: list[dict] | None = None) -> Rows | Stream:
    """The canonical rows for "sft", "dpo" or "grpo", from `rows` or from config.data; a Stream with data.streaming."""
    if rows is None and data.name is None:
        raise UserError("data.name is missing: give a file, a data set, or rows=[…] from Python")
    names = [data.name] if isinstance(data.name, str) else data.name
    if rows is None and data.streaming:
        return Stream(data, names, method)
    if rows is not None:
        parts: dict[str, Sequence[dict]] = {"rows": list(rows)}
    else:
        parts = {name: sources.read(name, subset=data.subset, split=data.split, task=data.task) for name in names}
    for source, raw in parts.items():
        if not len(raw):
            raise UserError(f"{source}: no rows")

    out, places, read, bad = [], [], [], []
    weights = data.weights if rows is None else None
    chosen = mix([len(raw) for raw in parts.values()], weights, data.max_samples, data.seed)
    for (source, raw), indices in zip(parts.items(), chosen, strict=True):
        reader = Reader([raw[i] for i in range(min(LOOK, len(raw)))], method, source, data)
        for index in indices:
            place = raw.place(index) if isinstance(raw, sources.Shards) else (source, index + 1)
            try:
                out.append(reader(raw[index], place))
            except BadRow as problem:
                bad.append(refuse_bad(problem, place, data, method))
                continue
            places.append(place)
        read.append(f"{len(indices):,} row{'s' * (len(indices) != 1)} as {reader.format} from {source}")
        if isinstance(raw, sources.Shards):
            read[-1] += f" ({', '.join(file.name for file in raw.files[:4])}{', …' if len(raw.files) > 4 else ''})"
        read[-1] += reader.unused
        if data.subset is not None and rows is None and sources.is_local(source):
            read[-1] += f" (data.subset {data.subset} means a part of a hub set: not used here)"
    refuse_too_many_bad(bad, sum(map(len, chosen)))
    return Rows(out, places, read, bad)


def mix(sizes: list[int], weights: list[float] | None, max_samples: int | None, seed: int) -> list[Sequence[int]]:
    """Which rows of each source are used.

    Without weights: all. With weights: as many of each as keeps the shares until one source runs out, drawn by the
    seed. max_samples: of each source the first of these, in proportion.

    >>> [len(rows) for rows in mix([100, 30], [1, 1], None, 0)], [len(rows) for rows in mix([100, 30], None, 13, 0)]
    ([30, 30], [10, 3])
    """
    counts = list(sizes)
    if weights is not None:
        fits = min(size / weight for size, weight in zip(sizes, weights, strict=True))
        counts = [min(size, max(1, int(weight * fits + 1e-9))) for size, weight in zip(sizes, weights, strict=True)]
    rng = random.Random(seed)
    chosen: list[Sequence[int]] = [
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
