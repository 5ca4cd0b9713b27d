"""The embedded tokenizer: any text survives, every digit is a token, and its template is ChatML."""

import pytest
from transformers import AutoTokenizer

from posttrain.tiny import data, tokenizer


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Saved, and read again by the plain library."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.build().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_the_tokenizer_keeps_every_byte_and_splits_digits(built):
    for text in ("Zoë paid 12,50 € — fine?\n\n  ok", "日本語", "So 12 + 3 = 15.\n#### 15", "\x00\t\r\n"):
        assert built.decode(built(text)["input_ids"]) == text
    assert built.convert_ids_to_tokens(built("So 12 + 3")["input_ids"]) == ["So", "Ġ1", "2", "Ġ+", "Ġ3"]


def test_a_worked_answer_is_short(built):
    """What the configs count on: max_new_tokens 28 holds a worked answer of two steps and its end."""
    answers = [m["content"] for row in data.rows("tiny-sft") for m in row["messages"] if m["role"] == "assistant"]
    assert max(len(built(text + tokenizer.STOP)["input_ids"]) for text in answers if "####" in text) <= 28


def test_special_tokens_are_one_each_and_the_pad_ends_nothing(built):
    for token in (tokenizer.STOP, tokenizer.PAD, tokenizer.DOCUMENT, "<|im_start|>"):
        assert len(built(token)["input_ids"]) == 1, token
    assert built.eos_token == "<|im_end|>" and built.pad_token == "<|pad|>" and len(built) <= tokenizer.VOCABULARY


def test_its_template(built):
    chat = [{"role": "user", "content": "Hi."}]
    text = built.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"


def test_it_is_the_same_every_time(built):
    assert tokenizer.build().get_vocab() == built.get_vocab()
