"""Plain text for pretraining: documents laid end to end and cut into rows, as they are read."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

from posttrain.data.sources import iterate
from posttrain.errors import UserError
from posttrain.tiny import data as tiny_data
from posttrain.tokens.batch import Example

TOGETHER = 256  # documents that are tokenised at once


def documents(data) -> Callable[[int], Iterator[str]]:
    """config.data -> the documents of each pass over it, in their order: a pure function of (data.seed, number of the
    pass)."""
    if data.name is None:
        raise UserError("data.name is missing: give tiny-text, a file or a data set")

    def tiny(epoch: int) -> Iterator[str]:
        return tiny_data.documents(random.Random(f"base {data.seed}"))  # endless: there is one pass only

    def read(epoch: int) -> Iterator[str]:
        for row, (source, number) in iterate(data.name, subset=data.subset, split=data.split):
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                found = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
                raise UserError(f"{source}, row {number}: expected a column `text` that holds text; found {found}")
            yield row["text"]

    return tiny if data.name == tiny_data.TEXT else read


class TextRows:
    """The same text as rows of `length` tokens, the separator behind every document. What is left at the end of a pass,
    less than a row, is not used. Documents in one row see each other, as is usual in pretraining."""

    def __init__(self, documents: Callable[[int], Iterator[str]], tokenizer, separator: int, length: int):
        self.documents, self.tokenizer, self.separator, self.length = documents, tokenizer, separator, length

    def epoch(self, number: int) -> Iterator[Example]:
        texts, ids, found = self.documents(number), [], False
        while batch := list(itertools.islice(texts, TOGETHER)):
            for document in self.tokenizer(batch, add_special_tokens=False)["input_ids"]:
                ids += [*document, self.separator]
            while len(ids) >= self.length:
                yield Example(ids[: self.length], [True] * self.length)
                ids, found = ids[self.length :], True
        if not found:
            raise UserError(f"the text is shorter than one row of data.max_length = {self.length} tokens")


def separator_id(tokenizer, token: str | None) -> int:
    """pretrain.separator -> its id; none: the tokenizer's eos."""
    if token is None:
        return tokenizer.eos_token_id
    if token not in tokenizer.get_vocab():
        raise UserError(
            f"pretrain.separator '{token}' is no token of the tokenizer: leave it out for {tokenizer.eos_token}"
        )
    return tokenizer.convert_tokens_to_ids(token)
