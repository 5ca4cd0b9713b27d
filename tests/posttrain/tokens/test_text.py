"""Plain text for pretraining: documents end to end, cut into rows."""

import pytest
from kit import bytelevel_tokenizer, write_jsonl

from posttrain.config.supervised import Text
from posttrain.errors import UserError
from posttrain.tokens.text import TextRows, documents, separator_id


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


def test_a_text_of_just_one_row():
    rows = TextRows(lambda epoch: iter(["abc"]), Letters(), 0, 4)
    assert [row.input_ids for row in rows.epoch(0)] == [[1, 2, 3, 0]]


def test_every_pass_reads_the_documents_of_its_number():
    rows = TextRows(lambda epoch: iter(["ab"] * (epoch + 1)), Letters(), 0, 3)
    assert [len(list(rows.epoch(n))) for n in (0, 1)] == [1, 2]


def test_many_documents_are_tokenised_some_at_a_time():
    asked = []

    class Counting(Letters):
        def __call__(self, texts, add_special_tokens=True):
            assert add_special_tokens is False  # the separator is all that stands between documents
            asked.append(len(texts))
            return super().__call__(texts)

    rows = list(TextRows(lambda epoch: iter(["a"] * 600), Counting(), 0, 2).epoch(0))
    assert len(rows) == 600 and asked == [256, 256, 88]


def test_documents_of_a_file_and_embedded_ones(tmp_path):
    name = write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    assert list(documents(Text(name=name))(0)) == ["one", "two"] == list(documents(Text(name=name))(1))
    tiny = [next(documents(Text(name="tiny-text", seed=seed))(0)) for seed in (0, 0, 1)]
    assert tiny[0] == tiny[1] != tiny[2]
    with pytest.raises(UserError, match=r"data.name is missing: give tiny-text, a file or a data set"):
        documents(Text())


@pytest.mark.parametrize(("row", "found"), [({"words": "x", "n": 1}, "words, n"), ({"text": 3}, "text"), ("x", "str")])
def test_a_row_without_text_is_named(tmp_path, row, found):
    name = write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}, row])
    with pytest.raises(UserError, match=rf"a.jsonl, row 2: expected a column `text` that holds text; found {found}"):
        list(documents(Text(name=name))(0))


def test_the_separator():
    tokenizer = bytelevel_tokenizer()
    assert separator_id(tokenizer, None) == tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id
    assert separator_id(tokenizer, "<|endoftext|>") == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    with pytest.raises(
        UserError, match=r"pretrain.separator '<none>' is no token of the tokenizer: leave it out for <\|im_end"
    ):
        separator_id(tokenizer, "<none>")
