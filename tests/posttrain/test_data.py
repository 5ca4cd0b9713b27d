"""Several sources, mixes, streams, and what is left out."""

import collections
import json

import pytest

from posttrain.data import Stream, load_rows, mix
from posttrain.errors import UserError
from posttrain.methods import SftData as Data


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
    assert len(got) == 39 and got.skipped == ["row 31: 'chosen' is empty: an empty answer teaches nothing"]
    assert got.where(30) == "rows, row 32"  # numbers stay those of the source
    with pytest.raises(
        UserError, match=r"rows, row 1: 'chosen' is empty.*\(3 such rows of 40; up to 5% would be left out"
    ):
        load("dpo", [good | {"chosen": ""}] * 3 + [good] * 37)


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
    bad = load("sft", None, name=jsonl(tmp_path, [{"text": "a"}] * 5 + [{"words": "b"}]), streaming=True)
    with pytest.raises(UserError, match="row 6: column 'text' is missing; found words"):
        list(bad.epoch(0))
    empty = load("sft", None, name=jsonl(tmp_path, [{"text": "a"}, {"text": " "}] * 300), streaming=True)
    with pytest.raises(UserError, match="'text' is empty"):
        list(empty.epoch(0))


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
