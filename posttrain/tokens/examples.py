"""Canonical rows -> token rows for each loop. What does not fit is cut, dropped and counted, or refused, as
data.overlong says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.data.messages import BadRow
from posttrain.data.reader import MOST_LEFT_OUT, Place, Rows, refuse_bad, refuse_too_many_bad, where
from posttrain.data.stream import FIRST, Stream
from posttrain.errors import UserError
from posttrain.tokens import template
from posttrain.tokens.batch import Example
from posttrain.tokens.shorten import shortened, too_long, too_long_to_answer


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
class Encoder:
    """Canonical row -> the items that fit, with a count of everything that was done to the others."""

    encode_row: Callable[[dict, int], list]
    limit: int  # longest item in tokens
    what: str  # "longer than data.max_length = 512 tokens"
    advice: str  # what would make room for it
    data: Any  # config.data: overlong and bad_rows say what becomes of a row that does not fit, or cannot be encoded
    method: str
    # rows that the chat template refuses, or that become nothing to learn from
    bad: list[str] = field(default_factory=list)
    total: int = 0  # items seen: rows, or supervised turns where a template splits a row
    dropped: int = 0
    cut: int = 0
    split_rows: int = 0

    def __call__(self, row: dict, index: int, place: Place) -> list:
        try:
            items = self.encode_row(row, index)
            if self.data.overlong == "truncate_prompt" and any(len(item) > self.limit for item in items):
                items = self._shortened(row, index) or items
        except UserError:
            raise
        except ValueError as problem:
            self.bad.append(refuse_bad(BadRow(problem), place, self.data, self.method))
            return []
        self.total += len(items)
        self.split_rows += len(items) > 1
        return [item for item in items if self._fits(item, place)]

    def _shortened(self, row: dict, index: int) -> list | None:
        def fits(row: dict) -> bool:
            return all(len(item) <= self.limit for item in self.encode_row(row, index))

        shorter = None if "text" in row else shortened(row, learned_from(row, self.data), fits)
        if shorter is None:
            return None
        self.cut += 1
        return self.encode_row(shorter, index)

    def _fits(self, item: Any, place: Place) -> bool:
        if len(item) <= self.limit:
            return True
        if self.data.overlong == "error":
            raise UserError(f"{where(place)}: {self.what} ({len(item)}): {self.advice}, or another data.overlong")
        self.dropped += 1
        return False

    def forget(self) -> None:
        self.total = self.dropped = self.cut = self.split_rows = 0
        self.bad = []

    def refuse_too_many(self) -> None:
        """One row may go from the smallest set; beyond that, a share above 5 % is a setting to change, not noise."""
        if self.dropped > max(1, MOST_LEFT_OUT * self.total):
            shorten = ", or set data.overlong: truncate_prompt" * (self.data.overlong != "truncate_prompt")
            raise UserError(
                f"{self.dropped:,} of {self.total:,} rows ({self.dropped / self.total:.1%}) are {self.what}: {self.advice}{shorten}; "
                f"at most {MOST_LEFT_OUT:.0%} would be dropped without asking"
            )

    def remarks(self) -> str:
        text = ""
        if self.split_rows:
            text += f"; {self.split_rows:,} {'was' if self.split_rows == 1 else 'were'} split into one row per assistant turn (the template rewrites earlier turns)"
        if self.cut:
            text += (
                f"; cut the beginning of {self.cut:,} prompt{'s of rows' if self.cut > 1 else ' of a row'} {self.what}"
            )
        if self.dropped:
            text += f"; dropped {self.dropped:,} ({self.dropped / self.total:.1%}): {self.what}"
        return text


@dataclass
class Encoded:
    items: list | EncodedStream
    rows: Rows | Stream
    encoder: Encoder
    group_of: list[int]  # of each item: the first row with its prompt, or its own row (of a stream: empty)
    remarks: list[str]  # what the chat template writes that nobody gave it

    @property
    def bad(self) -> list[str]:
        return [*self.rows.bad, *self.encoder.bad]

    def summary(self) -> str:
        text = f"read {'; '.join(self.rows.read)}"
        if self.bad:
            text += f"; left out {len(self.bad):,} that no loop can use (first: {self.bad[0]})"
        return text + self.encoder.remarks()


class EncodedStream:
    """The items of a stream, encoded as they are read. epoch(n) is a pure function of (data.seed, n)."""

    def __init__(self, stream: Stream, encoder: Encoder):
        self.stream, self.encoder = stream, encoder
        rows = stream.head(FIRST)  # on these it is decided, before training, whether too many are left out
        for row, place in zip(rows.rows, rows.places, strict=True):
            encoder(row, 0, place)
        encoder.refuse_too_many()
        refuse_too_many_bad([*rows.bad, *encoder.bad], len(rows) + len(rows.bad))
        if encoder.dropped == encoder.total:
            raise UserError(f"{', '.join(stream.names)}: nothing is left to train on{encoder.remarks()}")
        encoder.forget()

    def epoch(self, number: int) -> Iterator:
        for row, place in self.stream.epoch(number):
            yield from self.encoder(row, 0, place)


def learned_from(row: dict, data: Any) -> int:
    """The first message of a canonical row that is learned; of a prompt, the number of its messages: all are asked."""
    if "messages" not in row:
        return len(row["prompt"])
    answers = [i for i, m in enumerate(row["messages"]) if m["role"] == "assistant" and i >= row.get("learn_from", 0)]
    learned = [
        i for i in (answers[-1:] if data.train_on == "last" else answers) if row["messages"][i].get("train", True)
    ]
    return learned[0] if learned else len(row["messages"])


def _encode(rows: Rows | Stream, encoder: Encoder, tokenizer) -> Encoded:
    """Encode every row now, or, of a stream, each when it is read."""
    chats = any("text" not in row for row in (rows.head(1) if isinstance(rows, Stream) else rows).rows)
    remarks = template.remarks(tokenizer, encoder.data.chat_template_kwargs) if chats else []
    if isinstance(rows, Stream):
        return Encoded(EncodedStream(rows, encoder), rows, encoder, [], remarks)
    first: dict[str, int] = {}  # several answers to one prompt belong together
    groups = [first.setdefault(_asked(row, i, encoder.data), i) for i, row in enumerate(rows.rows)]
    made = [(item, groups[i]) for i, row in enumerate(rows.rows) for item in encoder(row, i, rows.places[i])]
    items = [item for item, _ in made]
    out = Encoded(items, rows, encoder, [group for _, group in made], remarks)
    refuse_too_many_bad(out.bad, len(rows) + len(rows.bad))
    if not items:
        advice = f": {encoder.advice}" if encoder.dropped == encoder.total > 0 else ""
        raise UserError(f"{out.summary()}: nothing is left to train on{advice}")
    encoder.refuse_too_many()
    return out


def shown(row: dict) -> dict[str, Any]:
    """What the chat template is given besides the messages: tools, template_kwargs."""
    return row.get("shown", {})


def _asked(row: dict, index: int, data: Any) -> str:
    """What stands before the first thing to learn. Plain text is its own."""
    if "text" in row:
        return str(index)
    return repr(row.get("prompt") or row["messages"][: learned_from(row, data)])


def sft_examples(rows: Rows | Stream, tokenizer, max_length: int, data) -> Encoded:
    def encode_row(row: dict, index: int) -> list[Example]:
        if "text" in row:
            return [template.text_example(tokenizer, row["text"])]
        examples = template.conversation_examples(
            tokenizer,
            row["messages"],
            learn_from=row.get("learn_from", 0),
            last_only=data.train_on == "last",
            **shown(row),
        )
        if not any(e.num_active for e in examples):
            raise ValueError("no supervised token: the chat template shows nothing of the assistant's turns")
        return examples

    return _encode(rows, Encoder(encode_row, max_length, *too_long(max_length, data), data, "sft"), tokenizer)


def pairs(rows: Rows | Stream, tokenizer, max_length: int, data) -> Encoded:
    def encode_row(row: dict, index: int) -> list[Pair]:
        prompt = template.prompt_ids(tokenizer, row["prompt"], **shown(row))
        sides = [
            Example.of(prompt, template.completion_ids(tokenizer, row["prompt"], row[s], **shown(row)))
            for s in ("chosen", "rejected")
        ]
        if sides[0] == sides[1]:
            raise ValueError("chosen and rejected become the same tokens: no preference to learn")
        return [Pair(*sides, index=index)]

    return _encode(rows, Encoder(encode_row, max_length, *too_long(max_length, data), data, "dpo"), tokenizer)


def labelled(rows: Rows | Stream, tokenizer, max_length: int, data) -> Encoded:
    def encode_row(row: dict, index: int) -> list[Labelled]:
        prompt = template.prompt_ids(tokenizer, row["prompt"], **shown(row))
        completion = template.completion_ids(tokenizer, row["prompt"], row["completion"], **shown(row))
        return [Labelled(Example.of(prompt, completion), row["label"])]

    return _encode(rows, Encoder(encode_row, max_length, *too_long(max_length, data), data, "outcome"), tokenizer)


def prompts(
    rows: Rows | Stream, tokenizer, max_length: int, max_new_tokens: int, data, method: str, item: Callable = Prompt
) -> Encoded:
    """item: what is made of the prompt's ids and its canonical row."""
    room = max_length - max_new_tokens
    if room < 1:
        raise UserError(
            f"{method}.max_new_tokens = {max_new_tokens} leaves no room for a prompt in data.max_length = {max_length}: lower one or raise the other"
        )
    said = too_long_to_answer(max_length, max_new_tokens, data, method)

    def encode_row(row: dict, index: int) -> list[Prompt]:
        return [item(template.prompt_ids(tokenizer, row["prompt"], **shown(row)), row)]

    return _encode(rows, Encoder(encode_row, room, *said, data, method), tokenizer)


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
