"""Two words behind a prompt: whole words, behind the template or behind plain text."""

import math

import pytest
import torch
from kit import CHATML, bytelevel_tokenizer

from posttrain.rollouts.either import in_chat, in_text, log_odds
from posttrain.tokens.batch import Example


def test_of_whole_words():
    """A in one token of ½; B in two, of ½ and ¼: log ½ − log ⅛ = log 4. First tokens alone would say 0."""
    rows = {(1,): [0.5], (2, 3): [0.5, 0.25], (4,): [0.25]}

    def read(examples):
        found = [rows[tuple(e.input_ids[e.completion_mask.index(True) :])] for e in examples]
        return [torch.tensor(probs).log() for probs in found]

    a, b, c = (Example.of([7, 8], list(ids)) for ids in rows)
    assert log_odds(read, [(a, b), (b, c)]) == pytest.approx([math.log(4), -math.log(2)], abs=1e-6)
    assert log_odds(read, []) == []


def test_where_they_stand():
    tokenizer = bytelevel_tokenizer(CHATML)
    asked = [{"role": "user", "content": "A or B?"}]
    for two, end in (
        (in_chat(tokenizer, asked, ("A", "B")), "assistant\n"),
        (in_text(tokenizer, "A or B?\n\nAnswer:", (" A", " B")), "Answer:"),
    ):
        for row, word in zip(two, "AB", strict=True):
            learned = [i for i, counts in zip(row.input_ids, row.completion_mask, strict=True) if counts]
            before = row.input_ids[: len(row) - len(learned)]
            assert tokenizer.decode(learned).strip() == word and tokenizer.decode(before).endswith(end)
