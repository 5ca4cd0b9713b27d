"""Suite perplexity: how surprised is the model by a text?

    perplexity      e^(Σ NLL / Σ tokens) over all documents: every token counts the same, whatever batch, row or
                    document it stands in. Only models with the same tokens can be compared by it
    bits_per_byte   Σ NLL / ln 2 / Σ bytes of the same text: comparable between tokenizers

Of plain text every token counts, eos included, but the first, which is predicted by nothing (behind a bos token the
text's own first one is predicted); of a conversation the assistant's turns. A document that is longer than the model
reads is read in windows that share one token: each is predicted exactly once, the first of a window from less.
"""

from __future__ import annotations

import hashlib
import math

from posttrain.config.suites import Perplexity as Options
from posttrain.errors import UserError
from posttrain.evaluation.scores import Outcome, ratio
from posttrain.evaluation.subjects import Subject
from posttrain.evaluation.suite_rows import texts_of
from posttrain.tokens import template
from posttrain.tokens.batch import Example
from posttrain.tokens.examples import shown

BEGINNING = 200  # characters of a document that stand in results.json


class Perplexity:
    def __init__(self, options: Options):
        self.options = options
        self.rows = texts_of(options)

    def __call__(self, subject: Subject) -> Outcome:
        length = self.options.max_length or subject.limit or 1024
        if subject.limit is not None and length > subject.limit:
            raise UserError(f"--perplexity.max_length {length}: {subject.name} reads at most {subject.limit} tokens")
        documents = [self._examples(subject, index) for index in range(len(self.rows))]
        pieces = [(i, w) for i, rows in enumerate(documents) for row in rows for w in windows(row, length)]
        nll, tokens = [0.0] * len(documents), [0] * len(documents)
        for (i, _), logps in zip(pieces, subject.logps([window for _, window in pieces]), strict=True):
            nll[i] -= logps.double().sum().item()
            tokens[i] += len(logps)
        size = [sum(_bytes(subject, row) for row in rows) for rows in documents]
        for i, (count, of_bytes) in enumerate(zip(tokens, size, strict=True)):
            if not count or not of_bytes:
                raise UserError(f"{self.rows.where(i)}: nothing in it is predicted: it is a single token, or empty")
        about = f"e^(nats per token), {sum(tokens):,} tokens of {len(documents):,} documents"
        scores = [
            ratio("perplexity", about, nll, tokens, "documents", scale="exp", better="lower", unit="per token"),
            ratio("bits_per_byte", f"bits for each of {sum(size):,} bytes", [x / math.log(2) for x in nll], size, "documents",
                  better="lower", unit="bits per byte"),
        ]  # fmt: skip
        records = []
        for i, row in enumerate(self.rows.rows):
            whole = row["text"] if "text" in row else repr(row["messages"])
            begin = row["text"] if "text" in row else row["messages"][0]["content"]
            seen = {"nll": round(nll[i], 4), "tokens": tokens[i], "bytes": size[i]}
            of_it = {
                "prompt": begin[:BEGINNING],
                "sha256": hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest(),
            }
            records.append({"part": "documents", **of_it, **seen})
        left_out = [f"left out {len(self.rows.bad)} rows: {self.rows.bad[0]}"] if self.rows.bad else []
        return Outcome(scores, records, left_out)

    def _examples(self, subject: Subject, index: int) -> list[Example]:
        row = self.rows.rows[index]
        try:
            if "text" in row:
                return [template.text_example(subject.tokenizer, row["text"])]
            return template.conversation_examples(
                subject.tokenizer, row["messages"], learn_from=row.get("learn_from", 0), **shown(row)
            )
        except UserError:
            raise
        except ValueError as problem:
            raise UserError(f"{self.rows.where(index)}: {problem}") from None


def windows(row: Example, length: int) -> list[Example]:
    """A long row in parts of at most `length` tokens; each begins with the last token of the one before, which it does
    not predict again.

    >>> [(w.input_ids, sum(w.completion_mask[1:])) for w in windows(Example([1, 2, 3, 4, 5], [True] * 5), 3)]
    [([1, 2, 3], 2), ([3, 4, 5], 2)]
    """
    starts = range(0, max(1, len(row) - 1), length - 1)
    ids, mask = row.input_ids, row.completion_mask
    parts = [Example(ids[s : s + length], mask[s : s + length]) for s in starts]
    return [part for part in parts if part.num_active]


def _bytes(subject: Subject, row: Example) -> int:
    """Of the text that is predicted."""
    ids = [i for i, counts in zip(row.input_ids[1:], row.completion_mask[1:], strict=True) if counts]
    return len(subject.tokenizer.decode(ids, skip_special_tokens=True).encode("utf-8", "replace"))
