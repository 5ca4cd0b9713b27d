"""The embedded tokenizer: any text survives, and every digit is a token."""

from posttrain.tiny import names as tiny


def test_the_tokenizer_keeps_every_byte_and_splits_digits():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.path_of("tiny-base"))
    for text in ("Zoë paid 12,50 € — fine?\n\n  ok", "日本語", "So 12 + 3 = 15.\n#### 15"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("So 12 + 3")["input_ids"]) == ["So", "Ġ1", "2", "Ġ+", "Ġ3"]
