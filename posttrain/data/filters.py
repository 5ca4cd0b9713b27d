"""Which rows to leave out, and why: duplicates, lengths, patterns, and signs of broken text that need no language to be
seen.

Every filter says its reason; a row is dropped for the first one that applies. `clean` keeps the order and counts.
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from posttrain.errors import UserError

COLUMNS = ("messages", "conversations", "system", "prompt", "instruction", "input", "question", "text", "completion", "output", "answer",
           "chosen", "rejected")  # fmt: skip
SHINGLE = 8  # characters: words would need a language
Filter = Callable[[dict, str], str | None]  # (row, its text) -> why it goes, or None


def parts_of(row: dict) -> list[str]:
    """What a row says, column by column, in any format of formats.py, without roles and other columns."""

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from strings(value.get("content", value.get("value")))
        elif isinstance(value, list):
            for item in value:
                yield from strings(item)

    columns = [column for column in COLUMNS if row.get(column)] or list(row)  # none that is known: all there are
    return [text for column in columns if (text := "\n".join(strings(row[column])))]


def text_of(row: dict) -> str:
    return "\n".join(parts_of(row))


def clean(rows: Iterable[dict], filters: list[Filter]) -> tuple[list[dict], list[tuple[dict, str]]]:
    """(kept, [(dropped row, reason)])"""
    kept, dropped = [], []
    for row in rows:
        text = text_of(row)
        reason = next((why for f in filters if (why := f(row, text)) is not None), None)
        if reason is None:
            kept.append(row)
        else:
            dropped.append((row, reason))
    return kept, dropped


def normalised(text: str) -> str:
    """Case, width and white space do not make two texts different."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def exact_duplicates() -> Filter:
    """A row that, but for case and white space, has come before: in all its columns, numbers too."""
    seen: set[int] = set()

    def folded(value: Any) -> Any:
        if isinstance(value, str):
            return normalised(value)
        if isinstance(value, dict):
            return {k: folded(v) for k, v in value.items()}
        return [folded(v) for v in value] if isinstance(value, list) else value

    def duplicate(row: dict, text: str) -> str | None:
        key = hash(json.dumps(folded(row), sort_keys=True, default=str))
        if key in seen:
            return "exact duplicate"
        seen.add(key)
        return None

    return duplicate


def near_duplicates(threshold: float) -> Filter:
    """A row that shares at least `threshold` of its 8-character pieces (Jaccard) with an earlier one: MinHash with 128
    permutations finds the candidates (Broder 1997), the pieces themselves decide."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        raise UserError("near duplicates need datasketch: pip install datasketch") from None
    index = MinHashLSH(threshold=0.7 * threshold, num_perm=128)  # generous: it only proposes
    pieces_of: list[set[bytes]] = []

    def duplicate(row: dict, text: str) -> str | None:
        text = normalised(text)
        if not text:
            return None
        pieces = {text[i : i + SHINGLE].encode() for i in range(max(1, len(text) - SHINGLE + 1))}
        sketch = MinHash(num_perm=128, seed=1)
        sketch.update_batch(list(pieces))
        for i in index.query(sketch):
            if len(pieces & pieces_of[i]) >= threshold * len(pieces | pieces_of[i]):
                return f"near duplicate (at least {threshold:g} the same)"
        index.insert(len(pieces_of), sketch)
        pieces_of.append(pieces)
        return None

    return duplicate


def length(least: int | None, most: int | None) -> Filter:
    """By characters of the row's text."""

    def wrong(row: dict, text: str) -> str | None:
        if least is not None and len(text) < least:
            return f"shorter than {least} characters"
        return f"longer than {most} characters" if most is not None and len(text) > most else None

    return wrong


def pattern(regex: str, *, keep: bool) -> Filter:
    """keep: only rows in which it is found; else only rows in which it is not."""
    try:
        compiled = re.compile(regex)
    except re.error as error:
        raise UserError(f"'{regex}' is not a regular expression: {error}") from None

    def wrong(row: dict, text: str) -> str | None:
        found = compiled.search(text) is not None
        return None if found == keep else f"{'does not match' if keep else 'matches'} {regex}"

    return wrong


def quality(row: dict, text: str) -> str | None:
    """Signs of text that went wrong, in any language, looked for in each column apart (the two sides of a pair are
    alike)."""
    return next((reason for part in parts_of(row) if (reason := _went_wrong(part)) is not None), None)


def _went_wrong(text: str) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "\ufffd" in text or any("\ud800" <= c <= "\udfff" for c in text):
        return "broken characters (U+FFFD or half a pair)"
    lines = [line for line in lines if len(line) > 8]  # brackets and list marks repeat in good code
    if len(lines) >= 5 and len(set(lines)) < 0.7 * len(lines):
        return "repeated lines"
    if len(data := text.encode()) > 300 and len(zlib.compress(data)) < 0.1 * len(data):
        return "says the same over and over"
    if re.search(r"([^\s\d_=\-*.#~])\1{19,}", text):
        return "one character 20 times in a row"
    text = re.sub(r"([^\w\s])\1+", r"\1", text)  # a ruled line is one symbol
    readable = sum(unicodedata.category(c)[0] in "LMNZ" or c.isspace() for c in text)  # letters, marks, numbers, spaces
    if len(text) > 50 and readable < 0.6 * len(text):
        return "mostly symbols"
    return None


def readable(method: str) -> Filter:
    """Only rows that the loop of this method takes, each in the format of the first that has one."""
    from posttrain.config.keys import Data
    from posttrain.data.reader import Reader

    readers: list[Reader] = []

    def wrong(row: dict, text: str) -> str | None:
        try:
            if not readers:
                readers.append(Reader([row], method, "the first row", Data()))
            readers[0](row, ("", 0))
        except ValueError as problem:
            reason = re.sub(r"^.*?row \d+: |, got .*|, message \d+|; found .*", "", str(problem))
            return f"loops.{'reward' if method == 'outcome' else method} refuses it: {reason}"
        return None

    return wrong
