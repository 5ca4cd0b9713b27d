"""Canonical rows -> token rows for each loop. What does not fit is cut, dropped and counted, or refused, as
data.overlong says."""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy

from posttrain.data.ahead import ahead
from posttrain.data.reader import Rows, refuse_too_many_bad
from posttrain.data.stream import FIRST, Stream
from posttrain.errors import UserError
from posttrain.tokens import template
from posttrain.tokens.batch import Example
from posttrain.tokens.encoder import Counts, Encoder, encode_all, learned_from
from posttrain.tokens.shorten import too_long, too_long_to_answer
from posttrain.tokens.template import Conversation

AT_ONCE = 64  # rows of a stream that are encoded together: the first step waits for them


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


def both_sides(pairs: list[Pair]) -> list[Example]:
    """The chosen rows, then the rejected ones: how every loop lays pairs into a batch."""
    return [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]


@dataclass(frozen=True)
class Labelled:
    """An answer and whether it is right."""

    example: Example
    label: float

    def __len__(self) -> int:
        return len(self.example)

    @property
    def counts(self) -> bool:
        return self.example.num_active > 0

    def muted(self) -> Labelled:
        return Labelled(self.example.muted(), self.label)


@dataclass(frozen=True)
class Prompt:
    ids: list[int]
    row: dict  # the canonical row: prompt (messages), asked (as the data had it), columns (for the reward function)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Encoded:
    items: list | EncodedStream
    rows: Rows | Stream
    encoder: Encoder
    # of each item: the first row with its prompt, or its own row (of a stream: empty)
    group_of: Sequence[int]
    remarks: list[str]  # what the chat template writes that nobody gave it

    @property
    def bad(self) -> list[str]:
        return [*self.rows.bad, *self.encoder.counts.bad]

    def summary(self) -> str:
        text = f"read {'; '.join(self.rows.read)}"
        if self.bad:
            text += f"; left out {len(self.bad):,} that no loop can use (first: {self.bad[0]})"
        return text + self.encoder.remarks()


class EncodedStream:
    """The items of a stream, read and encoded while the last ones are trained on. epoch(n) is a pure function of
    (data.seed, n)."""

    def __init__(self, stream: Stream, encoder: Encoder):
        self.stream, self.encoder = stream, encoder
        rows = stream.head(FIRST)  # on these it is decided, before training, whether too many are left out
        encoder.many(rows.rows, [0] * len(rows), rows.places)
        encoder.refuse_too_many()
        refuse_too_many_bad([*rows.bad, *encoder.counts.bad], len(rows) + len(rows.bad))
        if encoder.counts.dropped == encoder.counts.total:
            raise UserError(f"{', '.join(stream.names)}: nothing is left to train on{encoder.remarks()}")
        encoder.counts = Counts()

    def epoch(self, number: int) -> Iterator:
        for chunk in ahead(self._chunks(number)):
            yield from chunk

    def _chunks(self, number: int) -> Iterator[list]:
        rows = self.stream.epoch(number)
        while chunk := list(itertools.islice(rows, AT_ONCE)):
            made = self.encoder.many([row for row, _ in chunk], [0] * len(chunk), [place for _, place in chunk])
            yield [item for items in made for item in items]


def _encode(rows: Rows | Stream, encoder: Encoder) -> Encoded:
    """Encode every row now, or, of a stream, each when it is read."""
    chats = any("text" not in row for row in (rows.head(1) if isinstance(rows, Stream) else rows).rows)
    remarks = template.remarks(encoder.tokenizer, encoder.data.chat_template_kwargs) if chats else []
    if isinstance(rows, Stream):
        return Encoded(EncodedStream(rows, encoder), rows, encoder, [], remarks)
    # Several answers to one prompt belong together. As numbers in an array: a million rows are nothing.
    asked = numpy.fromiter((_asked(row, i, encoder.data) for i, row in enumerate(rows.rows)), "u8", len(rows))
    _, first, which = numpy.unique(asked, return_index=True, return_inverse=True)
    items, group_of = [], array("q")
    for row, group, made in zip(rows.rows, which, encode_all(encoder, rows.rows, rows.places), strict=True):
        items += [_settled(item, row) for item in made]
        group_of.extend([first[group]] * len(made))
    out = Encoded(items, rows, encoder, group_of, remarks)
    refuse_too_many_bad(out.bad, len(rows) + len(rows.bad))
    if not items:
        advice = f": {encoder.advice}" if encoder.counts.dropped == encoder.counts.total > 0 else ""
        raise UserError(f"{out.summary()}: nothing is left to train on{advice}")
    encoder.refuse_too_many()
    return out


def _settled(item: Any, row: dict) -> Any:
    """A prompt that another process has encoded brings a copy of its row: one is enough."""
    return replace(item, row=row) if isinstance(item, Prompt) and item.row == row else item


def shown(row: dict) -> dict[str, Any]:
    """What the chat template is given besides the messages: tools, template_kwargs."""
    return row.get("shown", {})


def _asked(row: dict, index: int, data: Any) -> int:
    """What stands before the first thing to learn, as a digest of 64 bits. Plain text is its own."""
    asked = str(index) if "text" in row else repr(row.get("prompt") or row["messages"][: learned_from(row, data)])
    return int.from_bytes(blake2b(asked.encode(), digest_size=8).digest(), "little")


def sft_examples(rows: Rows | Stream, tokenizer, max_length: int, data) -> Encoded:
    def conversations(row: dict) -> list[Conversation]:
        if "text" in row:
            return []
        last_only = data.train_on == "last"
        return [template.to_learn(row["messages"], row.get("learn_from", 0), last_only, shown(row))]

    def items(row: dict, index: int, examples: list[list[Example]]) -> list[Example]:
        if "text" in row:
            return [template.text_example(tokenizer, row["text"])]
        if not any(e.num_active for e in examples[0]):
            raise ValueError("no supervised token: the chat template shows nothing of the assistant's turns")
        return examples[0]

    said = too_long(max_length, data)
    return _encode(rows, Encoder(tokenizer, conversations, items, max_length, *said, data, "sft"))


def _answered(row: dict, answer: str | dict) -> Conversation:
    """A prompt with one answer, which is learned."""
    message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    return Conversation([*row["prompt"], message], [len(row["prompt"])], shown(row))


def pairs(rows: Rows | Stream, tokenizer, max_length: int, data) -> Encoded:
    def conversations(row: dict) -> list[Conversation]:
        return [_answered(row, row[side]) for side in ("chosen", "rejected")]

    def items(row: dict, index: int, examples: list[list[Example]]) -> list[Pair]:
        (chosen,), (rejected,) = examples
        if chosen == rejected:
            raise ValueError("chosen and rejected become the same tokens: no preference to learn")
        return [Pair(chosen, rejected, index)]

    said = too_long(max_length, data)
    return _encode(rows, Encoder(tokenizer, conversations, items, max_length, *said, data, "dpo"))


def labelled(rows: Rows | Stream, tokenizer, max_length: int, data) -> Encoded:
    def conversations(row: dict) -> list[Conversation]:
        return [_answered(row, row["completion"])]

    def items(row: dict, index: int, examples: list[list[Example]]) -> list[Labelled]:
        return [Labelled(examples[0][0], row["label"])]

    said = too_long(max_length, data)
    return _encode(rows, Encoder(tokenizer, conversations, items, max_length, *said, data, "outcome"))


def prompts(
    rows: Rows | Stream, tokenizer, max_length: int, max_new_tokens: int, data, method: str, item: Callable = Prompt
) -> Encoded:
    """item: what is made of the prompt's ids and its canonical row."""
    room = max_length - max_new_tokens
    if room < 1:
        raise UserError(
            f"{method}.max_new_tokens = {max_new_tokens} leaves no room for a prompt in data.max_length = {max_length}: lower one or raise the other"
        )

    def items(row: dict, index: int, examples: list[list[Example]]) -> list:
        return [item(template.prompt_ids(tokenizer, row["prompt"], **shown(row)), row)]

    said = too_long_to_answer(max_length, max_new_tokens, data, method)
    return _encode(rows, Encoder(tokenizer, lambda row: [], items, room, *said, data, method))


def hold_out(encoded: Encoded, share: float, seed: int) -> tuple[Any, list]:
    """(training, validation): data.validation_split of the *prompts*, drawn by data.seed, in their order. All answers
    to one prompt, and all that a template makes of one conversation, go to the same side: or what is held out would be
    half seen."""
    if share == 0:
        return encoded.items, []
    kept_out = _kept_out(encoded, share, seed)
    pairs = list(zip(encoded.items, encoded.group_of, strict=True))
    return [x for x, row in pairs if row not in kept_out], [x for x, row in pairs if row in kept_out]


def to_show(encoded: Encoded, share: float, seed: int) -> Rows | Stream:
    """The rows whose prompts are answered before and after a run: held out (one of each prompt), where any are."""
    if share == 0 or not isinstance(encoded.rows, Rows):
        return encoded.rows
    chosen = sorted(_kept_out(encoded, share, seed))
    rows, places = ([column[i] for i in chosen] for column in (encoded.rows.rows, encoded.rows.places))
    return replace(encoded.rows, rows=rows, places=places)


def _kept_out(encoded: Encoded, share: float, seed: int) -> set[int]:
    """The first row of each prompt that is held out."""
    rows = sorted(set(encoded.group_of))
    count = max(1, round(share * len(rows)))
    if count >= len(rows):
        raise UserError(
            f"data.validation_split = {share} leaves none of the {len(rows)} different prompts to train on: lower it"
        )
    return set(random.Random(seed).sample(rows, count))
