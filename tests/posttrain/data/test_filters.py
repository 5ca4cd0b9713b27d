"""Which rows go, and why: each filter by hand."""

import pytest

from posttrain import ROOT
from posttrain.config.supervised import SftData as Data
from posttrain.data import filters
from posttrain.data.rows import load_rows

STORY = "The lamp on the third shelf was the one that nobody bought, although it was the brightest of all and cost the least."


def test_near_duplicates_by_hand():
    # 8-character pieces: "abcdefghij" has 3, "abcdefghiX" shares abcdefgh and bcdefghi of 4 in all: Jaccard 2/4
    rows = [{"text": "abcdefghij"}, {"text": "abcdefghiX"}]
    assert len(filters.clean(rows, [filters.near_duplicates(0.5)])[0]) == 1
    assert len(filters.clean(rows, [filters.near_duplicates(0.55)])[0]) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("caf\ufffd au lait", "broken characters (U+FFFD or half a pair)"),
        ("half \ud83d", "broken characters (U+FFFD or half a pair)"),
        ("the first line\nthe second line" + "\nthe third line" * 4, "repeated lines"),
        ("int main() {\n}\n}\n}\n}\n}\n}", None),
        ("and so on and on " * 60, "says the same over and over"),
        ("no" + "o" * 25, "one character 20 times in a row"),
        ("{}[]<>|/\\^~ a b " * 4, "mostly symbols"),
        (r"`^\s*(?:\d+)[^\]]*$`", None),
        (STORY, None),
        ("今天天气很好，我们去公园散步吧。然后回家做饭。", None),
        ("यह एक साधारण वाक्य है जिसमें कुछ भी गलत नहीं है।", None),
        ("x = [i ** 2 for i in range(10)]\nprint(sum(x))", None),
        ("1 + 2 = 3\n#### 3", None),
        ("a\n" + "-" * 40 + "\nb", None),
    ],
)
def test_quality_needs_no_language(text, reason):
    assert filters.quality({"text": text}, text) == reason


def test_real_looking_rows_pass():

    from posttrain.data.sources import read

    for name in ("word_problems.jsonl", "pairs.jsonl", "sharegpt.json", "hh.jsonl", "alpaca.jsonl", "chats.jsonl"):
        rows = list(read(str(ROOT / "tests/data" / name)))
        assert filters.clean(rows, [filters.quality, filters.exact_duplicates()])[1] == [], name


def test_rows_that_a_loop_would_refuse():
    user, reply = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}
    rows = [
        {"messages": [user, reply]},
        {"messages": [reply, user, reply]},
        {"messages": [user, user, reply]},
        {"messages": [user]},
    ]
    kept, gone = filters.clean([{"messages": None}, *rows], [filters.readable("sft")])
    assert kept == rows[:1] and all(reason.startswith("loops.sft refuses it: ") for _, reason in gone)
    assert (
        gone[1][1] == "loops.sft refuses it: 'messages': roles out of order: an assistant message must answer a user's"
    )
    assert len(load_rows(Data(), "sft", kept)) == 1


def test_patterns_and_lengths():
    rows = [{"text": "alpha"}, {"text": "beta"}, {"text": "gamma ray"}]
    assert filters.clean(rows, [filters.pattern("a$", keep=True)])[0] == rows[:2]
    assert filters.clean(rows, [filters.pattern("^b", keep=False)])[0] == [rows[0], rows[2]]
    assert filters.clean(rows, [filters.length(None, 5)])[0] == rows[:2]


def test_text_of_reads_every_format_and_no_roles():
    assert (
        filters.text_of(
            {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}, "id": "x"}
        )
        == "a\nb"
    )
    assert filters.text_of({"messages": [{"role": "user", "content": "a"}], "score": 3}) == "a"


def test_columns_of_any_name_are_compared():
    rows = [{"query": f"q{i}", "response": "r"} for i in range(5)] + [
        {"query": "Q0 ", "response": "r"},
        {"prompt": "p", "n": 1},
        {"prompt": "p", "n": 2},
    ]
    kept, gone = filters.clean(rows, [filters.exact_duplicates()])
    assert len(kept) == 7 and [row for row, _ in gone] == [{"query": "Q0 ", "response": "r"}]
    assert filters.text_of({"query": "q", "response": "r"}) == "q\nr"
