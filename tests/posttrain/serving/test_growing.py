import random

import pytest
from kit import bytelevel_tokenizer, sentencepiece_tokenizer

from posttrain.serving.growing import Written

TEXTS = [
    "Hello there, how are you? I'm fine.",
    "Grüße aus Köln: ça va? naïve café",
    "日本語のテキスト、絵文字 👩‍👩‍👧 🎉 end",
    "  two  spaces,\n\n  lines\tand tabs  ",
    "e\u0301 combining, and \u200b nothing",
]


@pytest.fixture(scope="module")
def tokenizer():
    return bytelevel_tokenizer()


@pytest.mark.parametrize("kind", [bytelevel_tokenizer, sentencepiece_tokenizer])
@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_whole(kind, text):
    tokenizer = kind()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    written = Written(tokenizer)
    pieces = [written.add(i) for i in ids] + [written.end()]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True) == written.text
    assert "\ufffd" not in "".join(pieces[:-1])
    assert sum(map(bool, pieces)) > 3, "it is to come in pieces"


@pytest.mark.parametrize("kind", [bytelevel_tokenizer, sentencepiece_tokenizer])
def test_random_ids_too(kind):
    """Bytes that are no letter, special tokens in between."""
    rng, tokenizer = random.Random(0), kind()
    for _ in range(50):
        ids = [rng.randrange(len(tokenizer)) for _ in range(30)]
        written = Written(tokenizer)
        pieces = [written.add(i) for i in ids] + [written.end()]
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_letter_of_several_tokens_comes_whole(tokenizer):
    ids = tokenizer("é🎉", add_special_tokens=False)["input_ids"]
    assert len(ids) == 6  # two bytes and four: none of them is a letter
    written = Written(tokenizer)
    assert [written.add(i) for i in ids] == ["", "é", "", "", "", "🎉"] and written.end() == ""
    cut = Written(tokenizer)
    assert [cut.add(i) for i in ids[:3]] == ["", "é", ""] and cut.end() == "\ufffd"


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        (["fine"], "Hello there, how are you? I'm "),
        ([", how", "there"], "Hello "),  # the one that comes first
        (["?"], "Hello there, how are you"),
        (["Hello"], ""),
        (["fine.!"], "Hello there, how are you? I'm fine."),  # begun, and never ended: shown at the end
        (["are you? I'm fine"], "Hello there, how "),
    ],
)
def test_stop_strings(tokenizer, stop, shown):
    written, pieces = Written(tokenizer, stop), []
    for token in tokenizer("Hello there, how are you? I'm fine.", add_special_tokens=False)["input_ids"]:
        pieces.append(written.add(token))
        if written.stopped:
            break
    pieces.append(written.end())
    assert "".join(pieces) == written.text == shown
    assert written.stopped == (stop != ["fine.!"])


def test_what_may_be_a_stop_string_is_held_back(tokenizer):
    """ "a b" is said letter by letter; "a c" would end it."""
    written = Written(tokenizer, ["a c"])
    said = [
        written.add(i)
        for piece in ("x", "a", " ", "b")
        for i in tokenizer(piece, add_special_tokens=False)["input_ids"]
    ]
    assert said == ["x", "", "", "a b"]
