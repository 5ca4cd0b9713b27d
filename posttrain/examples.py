"""Canonical rows -> token rows for each loop. What does not fit is dropped whole, counted, and said."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from posttrain import chat
from posttrain.batch import Example
from posttrain.data import Rows
from posttrain.errors import UserError


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt: both rows begin with the same prompt ids."""

    chosen: Example
    rejected: Example
    index: int = 0  # which row of the data: finds its precomputed reference log-probs again

    def __len__(self) -> int:
        return max(len(self.chosen), len(self.rejected))

    @property
    def counts(self) -> bool:
        return self.chosen.num_active > 0

    def muted(self) -> Pair:
        return Pair(self.chosen.muted(), self.rejected.muted(), self.index)


@dataclass(frozen=True)
class Prompt:
    ids: list[int]
    row: dict  # the canonical row: `prompt` (messages) and the columns for the reward function

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Encoded:
    items: list
    source: str
    recognised_as: str
    total: int
    dropped: dict[str, int] = field(default_factory=dict)
    split_rows: int = 0
    skipped: list[str] = field(default_factory=list)

    def summary(self) -> str:
        text = f"read {self.total:,} rows as {self.recognised_as} from {self.source}"
        if self.split_rows:
            text += f"; {self.split_rows:,} were split into one row per assistant turn (the template rewrites earlier turns)"
        if self.skipped:
            text += f"; left out {len(self.skipped):,} that teach nothing (first: {self.skipped[0]})"
        if self.dropped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
            count = sum(self.dropped.values())
            text += f"; dropped {count:,} ({count / self.total:.1%}): {reasons}"
        return text


def _encode(rows: Rows, encode_row: Callable[[dict, int], list], fits: Callable[[object], str | None]) -> Encoded:
    """Encode every row; what a row raises is told with its name; what does not fit is dropped with its reason."""
    out = Encoded([], rows.source, rows.recognised_as, len(rows) + len(rows.skipped), skipped=rows.skipped)
    for index, row in enumerate(rows.rows):
        try:
            items = encode_row(row, index)
        except ValueError as problem:
            raise UserError(f"{rows.where(index)}: {problem}") from None
        out.split_rows += len(items) > 1
        for item in items:
            if reason := fits(item):
                out.dropped[reason] = out.dropped.get(reason, 0) + 1
            else:
                out.items.append(item)
    if not out.items:
        raise UserError(f"{out.summary()}: nothing is left to train on")
    return out


def sft_examples(rows: Rows, tokenizer, max_length: int) -> Encoded:
    def encode_row(row: dict, index: int) -> list[Example]:
        examples = (
            [chat.text_example(tokenizer, row["text"])]
            if "text" in row
            else chat.conversation_examples(tokenizer, row["messages"])
        )
        if not any(e.num_active for e in examples):
            raise ValueError("no supervised token: the chat template shows nothing of the assistant's turns")
        return examples

    return _encode(rows, encode_row, lambda e: _too_long(len(e), max_length))


def pairs(rows: Rows, tokenizer, max_length: int) -> Encoded:
    def encode_row(row: dict, index: int) -> list[Pair]:
        prompt = chat.prompt_ids(tokenizer, row["prompt"])
        sides = [
            Example.of(prompt, chat.completion_ids(tokenizer, row["prompt"], row[s])) for s in ("chosen", "rejected")
        ]
        if sides[0] == sides[1]:
            raise ValueError("chosen and rejected become the same tokens: no preference to learn")
        return [Pair(*sides, index=index)]

    return _encode(rows, encode_row, lambda pair: _too_long(len(pair), max_length))


def prompts(rows: Rows, tokenizer, max_length: int, max_new_tokens: int) -> Encoded:
    room = max_length - max_new_tokens
    if room < 1:
        raise UserError(
            f"grpo.max_new_tokens = {max_new_tokens} leaves no room for a prompt in data.max_length = {max_length}: lower one or raise the other"
        )

    def fits(prompt: Prompt) -> str | None:
        return (
            f"with a prompt over {room} tokens (data.max_length {max_length} − {max_new_tokens} new ones)"
            if len(prompt) > room
            else None
        )

    return _encode(rows, lambda row, index: [Prompt(chat.prompt_ids(tokenizer, row["prompt"]), row)], fits)


def _too_long(length: int, max_length: int) -> str | None:
    return f"longer than data.max_length = {max_length} tokens" if length > max_length else None


def hold_out(items: list, share: float, seed: int) -> tuple[list, list]:
    """(training, validation): data.validation_split of the rows, drawn by the seed, in their order."""
    if share == 0:
        return items, []
    count = max(1, round(share * len(items)))
    if count >= len(items):
        raise UserError(f"data.validation_split = {share} leaves none of the {len(items)} rows to train on")
    kept_out = set(random.Random(seed).sample(range(len(items)), count))
    return [x for i, x in enumerate(items) if i not in kept_out], [x for i, x in enumerate(items) if i in kept_out]
