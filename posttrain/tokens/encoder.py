"""Canonical rows -> items (examples, pairs, prompts), many at once, and a count of all that could not be used as it is.

A chunk of rows is rendered and tokenised in one pass where the chat template allows it (one_pass.py), else turn by
turn. Many rows are encoded by several processes, each a copy of this one that takes the next chunk and gives its items
back.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from posttrain.data.messages import BadRow
from posttrain.data.reader import MOST_LEFT_OUT, Place, refuse_bad, where
from posttrain.errors import UserError
from posttrain.tokens import template
from posttrain.tokens.batch import Example
from posttrain.tokens.one_pass import OnePass
from posttrain.tokens.shorten import shortened
from posttrain.tokens.template import Conversation

CHUNK = 500  # rows that are tokenised in one call
MANY = 10_000  # rows from which further processes are worth their start


def learned_from(row: dict, data: Any) -> int:
    """The first message of a canonical row that is learned; of a prompt, the number of its messages: all are asked."""
    if "messages" not in row:
        return len(row["prompt"])
    messages = row["messages"]
    answers = template.answers_in(messages, row.get("learn_from", 0), data.train_on == "last")
    return next((i for i in answers if messages[i].get("train", True)), len(messages))


@dataclass
class Counts:
    """What became of the rows that could not be used as they are."""

    # rows that the chat template refuses, or that become nothing to learn from
    bad: list[str] = field(default_factory=list)
    total: int = 0  # items seen: rows, or supervised turns where a template splits a row
    dropped: int = 0
    cut: int = 0
    split_rows: int = 0

    def __iadd__(self, other: Counts) -> Counts:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


@dataclass
class Encoder:
    """Canonical row -> the items that fit, with a count of everything that was done to the others."""

    tokenizer: Any
    conversations: Callable[[dict], list[Conversation]]  # what is rendered of a row; nothing of plain text and prompts
    items: Callable[[dict, int, list[list[Example]]], list]  # (row, its number, the examples of each conversation)
    limit: int  # longest item in tokens
    what: str  # "longer than data.max_length = 512 tokens"
    advice: str  # what would make room for it
    data: Any  # config.data: overlong and bad_rows say what becomes of a row that does not fit, or cannot be encoded
    method: str
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.one_pass = OnePass(self.tokenizer)

    def many(self, rows: list[dict], indices: Sequence[int], places: list[Place]) -> list[list]:
        """The items of each of these rows: in one pass those that the template allows, the others turn by turn."""
        asked = [self._asked(row) for row in rows]
        plain = [conversation for of_row in asked if isinstance(of_row, list) for conversation in of_row]
        ready = iter(self.one_pass(plain))
        return [self._row(*row, ready) for row in zip(rows, indices, places, asked, strict=True)]

    def _asked(self, row: dict) -> list[Conversation] | ValueError:
        """What is rendered of the row, or why nothing can be: told when its turn comes."""
        try:
            return self.conversations(row)
        except ValueError as problem:
            return problem

    def _row(
        self, row: dict, index: int, place: Place, asked: list[Conversation] | ValueError, ready: Iterator
    ) -> list:
        """ready: gives, for each conversation asked, its example or None."""
        counts = self.counts
        made = [] if isinstance(asked, ValueError) else [(conversation, next(ready)) for conversation in asked]
        try:
            if isinstance(asked, ValueError):
                raise asked
            items = self.items(row, index, [self._by_turn(c) if one is None else [one] for c, one in made])
            if self.data.overlong == "truncate_prompt" and any(len(item) > self.limit for item in items):
                items = self._shortened(row, index) or items
        except UserError:
            raise
        except ValueError as problem:
            counts.bad.append(refuse_bad(BadRow(problem), place, self.data, self.method))
            return []
        counts.total += len(items)
        counts.split_rows += len(items) > 1
        return [item for item in items if self._fits(item, place)]

    def _by_turn(self, conversation: Conversation) -> list[Example]:
        return template.examples_of(self.tokenizer, conversation)

    def _shortened(self, row: dict, index: int) -> list | None:
        def encoded(row: dict) -> list:
            return self.items(row, index, [self._by_turn(c) for c in self.conversations(row)])

        def fits(row: dict) -> bool:
            return all(len(item) <= self.limit for item in encoded(row))

        shorter = None if "text" in row else shortened(row, learned_from(row, self.data), fits)
        if shorter is None:
            return None
        self.counts.cut += 1
        return encoded(shorter)

    def _fits(self, item: Any, place: Place) -> bool:
        if len(item) <= self.limit:
            return True
        if self.data.overlong == "error":
            raise UserError(f"{where(place)}: {self.what} ({len(item)}): {self.advice}, or another data.overlong")
        self.counts.dropped += 1
        return False

    def refuse_too_many(self) -> None:
        """One row may go from the smallest set; beyond that, a share above 5 % is a setting to change, not noise."""
        counts = self.counts
        if counts.dropped > max(1, MOST_LEFT_OUT * counts.total):
            shorten = ", or set data.overlong: truncate_prompt" * (self.data.overlong != "truncate_prompt")
            raise UserError(
                f"{counts.dropped:,} of {counts.total:,} rows ({counts.dropped / counts.total:.1%}) are {self.what}: {self.advice}{shorten}; "
                f"at most {MOST_LEFT_OUT:.0%} would be dropped without asking"
            )

    def remarks(self) -> str:
        counts, text = self.counts, ""
        if counts.split_rows:
            text += f"; {counts.split_rows:,} {'was' if counts.split_rows == 1 else 'were'} split into one row per assistant turn (the template rewrites earlier turns)"
        if counts.cut:
            text += f"; cut the beginning of {counts.cut:,} prompt{'s of rows' if counts.cut > 1 else ' of a row'} {self.what}"
        if counts.dropped:
            text += f"; dropped {counts.dropped:,} ({counts.dropped / counts.total:.1%}): {self.what}"
        return text


# ---------------------------------------------------------------- all rows of a set

_at_work: tuple[Encoder, Sequence[dict], Sequence[Place]]  # what the processes that encode were forked with


def encode_all(encoder: Encoder, rows: Sequence[dict], places: Sequence[Place]) -> Iterator[list]:
    """The items of each row, in their order. encoder.counts is of all of them when the last has come."""
    chunks = [range(start, min(start + CHUNK, len(rows))) for start in range(0, len(rows), CHUNK)]
    several = workers() if len(rows) >= MANY else 1
    global _at_work
    _at_work = (encoder, rows, places)
    bar = tqdm(total=len(rows), desc="encoding", unit=" rows", leave=False, disable=None if len(rows) >= MANY else True)
    try:
        if several == 1:
            made = map(_encode_chunk, chunks)
            yield from _in_order(encoder, made, bar)
        else:
            with multiprocessing.get_context("fork").Pool(several, _begin) as pool:
                yield from _in_order(encoder, pool.imap(_encode_chunk, chunks), bar)
    finally:
        bar.close()
        del _at_work


def workers() -> int:
    """Processes that may encode beside each other: the cores that this one may use, shared with the other processes of
    the run. Elsewhere than on Linux a process cannot be copied safely: one."""
    if not sys.platform.startswith("linux"):
        return 1
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(cores, 16))


def _begin() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive the copy, and are not needed


def _encode_chunk(chunk: range) -> tuple[list[list], Counts]:
    encoder, rows, places = _at_work
    encoder.counts = Counts()
    return encoder.many([rows[i] for i in chunk], chunk, [places[i] for i in chunk]), encoder.counts


def _in_order(encoder: Encoder, made: Any, bar: tqdm) -> Iterator[list]:
    total = Counts()
    for items, counts in made:
        total += counts
        bar.update(len(items))
        yield from items
    encoder.counts = total
