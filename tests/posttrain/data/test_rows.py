"""Several sources, mixes, streams, and what is left out."""

import collections
import json

import pytest
from kit import FORGETFUL, GEMMA, bytelevel_tokenizer

from posttrain.config.supervised import SftData as Data
from posttrain.data.rows import load_rows, mix
from posttrain.data.stream import Stream
from posttrain.errors import UserError
from posttrain.tokens.examples import hold_out, sft_examples


def jsonl(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return str(path)


def load(method, rows, **data):
    return load_rows(Data(**data), method, rows)


@pytest.fixture
def two(tmp_path):
    a = jsonl(tmp_path, [{"text": f"a{i}"} for i in range(100)], "a.jsonl")
    b = jsonl(tmp_path, [{"prompt": f"b{i}", "completion": "x"} for i in range(30)], "b.jsonl")
    return [a, b]


def letters(rows):
    return collections.Counter("a" if "text" in row else "b" for row in rows)


def test_a_few_rows_that_teach_nothing_are_left_out_and_counted():
    good = {"prompt": "x", "chosen": "a", "rejected": "b"}
    got = load("dpo", [good] * 30 + [good | {"chosen": ""}] + [good] * 9)
    assert len(got) == 39 and got.bad == ["rows, row 31: 'chosen' is empty: an empty answer teaches nothing"]
    assert got.where(30) == "rows, row 32"  # numbers stay those of the source
    with pytest.raises(
        UserError, match=r"rows, row 1: 'chosen' is empty.*\(3 such rows of 40; up to 5% would be left out"
    ):
        load("dpo", [good | {"chosen": ""}] * 3 + [good] * 37)


TWICE = {"messages": [{"role": "user", "content": "a"}] * 2 + [{"role": "assistant", "content": "b"}]}
FINE = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def test_a_bad_row_is_left_out_counted_and_told_or_stops_the_run(tmp_path):
    rows = load("sft", [FINE] * 30 + [TWICE] + [FINE] * 9)
    assert len(rows) == 39 and len(rows.bad) == 1
    assert rows.bad[0].startswith("rows, row 31: 'messages', message 2: roles out of order")
    with pytest.raises(
        UserError, match=r"row 31: .*roles out of order.* Mend it, set data.bad_rows: drop, or clean the file"
    ):
        load("sft", [FINE] * 30 + [TWICE] + [FINE] * 9, bad_rows="error")
    with pytest.raises(UserError, match=r"row 1: .*2 such rows of 39; up to 5% would be left out"):
        load("sft", [TWICE] * 2 + [FINE] * 37)
    encoded = sft_examples(rows, bytelevel_tokenizer(), 100, Data())
    assert "; left out 1 that no loop can use (first: rows, row 31: " in encoded.summary()


def test_what_the_chat_template_refuses_is_a_bad_row_too():
    system = {"messages": [{"role": "system", "content": "s"}, *FINE["messages"]]}
    encoded = sft_examples(load("sft", [FINE] * 19 + [system]), bytelevel_tokenizer(GEMMA), 100, Data())
    assert len(encoded.items) == 19 and "row 20: the tokenizer's chat template refuses" in encoded.bad[0]
    with pytest.raises(UserError, match=r"row 19: the tokenizer's chat template refuses.*2 such rows of 20"):
        sft_examples(load("sft", [FINE] * 18 + [system] * 2), bytelevel_tokenizer(GEMMA), 100, Data())


def test_several_sources_each_in_its_own_format(two):
    got = load("sft", None, name=two)
    assert letters(got.rows) == {"a": 100, "b": 30}
    assert got.read == [
        f"100 rows as plain text, trained whole from {two[0]}",
        f"30 rows as prompt + completion from {two[1]}",
    ]
    assert got.where(100) == f"{two[1]}, row 1"


def test_weights_are_shares_until_one_source_runs_out_and_no_row_comes_twice(two):
    # 3 : 1, and b has 30 rows: 90 of a's 100
    got = load("sft", None, name=two, weights=[3, 1])
    assert letters(got.rows) == {"a": 90, "b": 30} and len(set(got.places)) == 120
    again, other = load("sft", None, name=two, weights=[3, 1]), load("sft", None, name=two, weights=[3, 1], seed=1)
    assert again.places == got.places != other.places


def test_max_samples_takes_the_first_rows_and_of_several_sources_a_share_each(two):
    assert load("sft", None, name=two[0], max_samples=2).rows == [{"text": "a0"}, {"text": "a1"}]
    assert letters(load("sft", None, name=two, max_samples=13).rows) == {"a": 10, "b": 3}
    assert letters(load("sft", None, name=two, weights=[1, 1], max_samples=13).rows) == {"a": 7, "b": 6}


def test_mix_by_hand():
    # w = (.2, .8) of (100, 40): 40 / .8 = 50 rows in all, 10 and 40
    assert [len(x) for x in mix([100, 40], [0.2, 0.8], None, 0)] == [10, 40]
    assert [len(x) for x in mix([5, 5, 5], None, 7, 0)] == [3, 2, 2]  # 7/3 each: the remainder to the first
    assert mix([3], None, 9, 0) == [range(3)]


# ---------------------------------------------------------------- streams


def test_a_stream_gives_every_row_once_in_an_order_of_seed_and_epoch(two):
    stream = load("sft", None, name=two, streaming=True)
    assert isinstance(stream, Stream)
    orders = [[place for _, place in stream.epoch(n)] for n in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(load("sft", None, name=two).places)
    assert letters(row for row, _ in stream.epoch(0)) == {"a": 100, "b": 30}


def test_a_stream_mixes_by_weights(two):
    stream = load("sft", None, name=two, streaming=True, weights=[3, 1])
    counts = letters(row for row, _ in stream.epoch(0))
    assert (counts["a"] == 100 or counts["b"] == 30) and 2 < counts["a"] / counts["b"] < 4.5


def test_a_stream_looks_like_what_it_reads(two):
    stream = load("sft", None, name=two[1], streaming=True, max_samples=7)
    assert stream.read == [f"a stream of prompt + completion from {two[1]}"]
    assert len(stream.head(3)) == 3 and len(list(stream.epoch(0))) == 7


def test_a_stream_shuffles_through_a_buffer(tmp_path):
    name = jsonl(tmp_path, [{"text": str(i)} for i in range(3000)])
    order = [int(row["text"]) for row, _ in load("sft", None, name=name, streaming=True).epoch(0)]
    assert sorted(order) == list(range(3000)) and order[:100] != list(range(100))
    assert max(order[:100]) <= 1100  # nothing is read far ahead of what is used


def test_what_goes_wrong_in_a_stream(tmp_path):
    with pytest.raises(UserError, match="no rows"):
        load("sft", None, name=jsonl(tmp_path, []), streaming=True)
    bad = load(
        "sft", None, name=jsonl(tmp_path, [{"text": "a"}] * 5 + [{"words": "b"}]), streaming=True, bad_rows="error"
    )
    with pytest.raises(UserError, match="row 6: column 'text' is missing; found words"):
        list(bad.epoch(0))
    empty = load("sft", None, name=jsonl(tmp_path, [{"text": "a"}] * 30 + [{"text": " "}]), streaming=True)
    assert len(list(empty.epoch(0))) == 30 and len(empty.bad) == 1 and "row 31" in empty.bad[0]
    assert len(empty.head(31)) == 30 and len(empty.head(31).bad) == 1
    late = [{"text": "a"}] * 200 + [{"words": "b"}] * 11  # the 11th of 211 is more than one in twenty
    with pytest.raises(UserError, match=r"row 201: column 'text' is missing.*11 such rows of 211"):
        list(load("sft", None, name=jsonl(tmp_path, late), streaming=True).epoch(0))


@pytest.mark.parametrize("bad", [[{"text": " "}] * 5, [{"text": "word " * 500}] * 5])
def test_a_stream_that_begins_badly_is_refused_before_training(tmp_path, bad):
    data = Data(name=jsonl(tmp_path, [{"text": "a b c"}] * 30 + bad), streaming=True)
    with pytest.raises(
        UserError, match=r"5 such rows of 35|5 of 35 rows \(14.3%\) are longer than data.max_length = 100"
    ):
        sft_examples(load_rows(data, "sft"), bytelevel_tokenizer(), 100, data)


def test_a_folder_is_one_source_that_knows_its_files(tmp_path):
    jsonl(tmp_path, [{"text": "a"}] * 3, "a.jsonl")
    jsonl(tmp_path, [{"text": "b"}, {"text": 3}], "b.jsonl")
    with pytest.raises(UserError, match=r"b.jsonl, row 2: 'text' must be text"):
        load("sft", None, name=str(tmp_path))
    got = load("sft", None, name=str(tmp_path), max_samples=4)
    assert got.where(3) == f"{tmp_path}/b.jsonl, row 1" and got.read[0].endswith("(a.jsonl, b.jsonl)")


def test_what_a_template_makes_of_one_conversation_is_held_out_together():
    chat = [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 3, "abcdef", strict=True)]
    data = Data()
    encoded = sft_examples(load("sft", [{"messages": chat}] * 10), bytelevel_tokenizer(FORGETFUL), 200, data)
    assert len(encoded.items) == 30 and encoded.encoder.total == 30
    training, validation = hold_out(encoded, 0.2, 0)
    assert (len(training), len(validation)) == (24, 6)  # two whole conversations


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": []}, "name is an empty list"),
        ({"name": ["a", "a"]}, "lists a source twice"),
        ({"name": ["a", "b"], "weights": [1]}, "weights has 1 entries for 2 names"),
        ({"name": ["a", "b"], "weights": [1, 0]}, "must be above 0"),
        ({"name": "a", "streaming": True, "validation_split": 0.1}, "validation_split needs all rows at once"),
    ],
)
def test_keys_that_cannot_be(data, message):
    with pytest.raises(ValueError, match=message):
        Data(**data)
