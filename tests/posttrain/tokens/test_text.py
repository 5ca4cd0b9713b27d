"""Plain text for pretraining: documents end to end, cut into rows."""

import pytest

from posttrain.errors import UserError
from posttrain.tokens.text import TextRows


class Letters:
    """A tokenizer of one id per character."""

    eos_token_id, eos_token = 0, "."

    def __call__(self, texts, add_special_tokens=True):
        return {"input_ids": [[ord(c) - 96 for c in text] for text in texts]}


def test_documents_lie_end_to_end_with_the_separator_behind_each():
    rows = TextRows(lambda epoch: iter(["abc", "de", "f"]), Letters(), 0, 4)
    # a b c . d e . f .  ->  [a b c .] [d e . f], and one id that makes no row
    assert [row.input_ids for row in rows.epoch(0)] == [[1, 2, 3, 0], [4, 5, 0, 6]]
    assert all(row.completion_mask == [True] * 4 for row in rows.epoch(1))


def test_a_text_shorter_than_one_row_is_refused():
    with pytest.raises(UserError, match=r"shorter than one row of data.max_length = 9 tokens"):
        next(TextRows(lambda epoch: iter(["abc", "de"]), Letters(), 0, 9).epoch(0))
