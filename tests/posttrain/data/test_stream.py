"""Rows that are read while training: their order, their mix, and what goes wrong."""

import collections

import pytest
from kit import rows_for, write_jsonl

from posttrain.data.stream import Stream
from posttrain.errors import UserError


def letters(rows):
    return collections.Counter("a" if "text" in row else "b" for row in rows)


def test_a_stream_gives_every_row_once_in_an_order_of_seed_and_epoch(two):
    stream = rows_for("sft", name=two, streaming=True)
    assert isinstance(stream, Stream)
    orders = [[place for _, place in stream.epoch(n)] for n in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(rows_for("sft", name=two).places)
    assert letters(row for row, _ in stream.epoch(0)) == {"a": 100, "b": 30}


def test_a_stream_mixes_by_weights(two):
    stream = rows_for("sft", name=two, streaming=True, weights=[3, 1])
    counts = letters(row for row, _ in stream.epoch(0))
    assert (counts["a"] == 100 or counts["b"] == 30) and 2 < counts["a"] / counts["b"] < 4.5


def test_a_stream_looks_like_what_it_reads(two):
    stream = rows_for("sft", name=two[1], streaming=True, max_samples=7)
    assert stream.read == [f"a stream of prompt + completion from {two[1]}"]
    assert len(stream.head(3)) == 3 and len(list(stream.epoch(0))) == 7


def test_a_stream_shuffles_through_a_buffer(tmp_path):
    name = write_jsonl(tmp_path / "rows.jsonl", [{"text": str(i)} for i in range(3000)])
    order = [int(row["text"]) for row, _ in rows_for("sft", name=name, streaming=True).epoch(0)]
    assert sorted(order) == list(range(3000)) and order[:100] != list(range(100))
    assert max(order[:100]) <= 1100  # nothing is read far ahead of what is used


def test_what_goes_wrong_in_a_stream(tmp_path):
    with pytest.raises(UserError, match="no rows"):
        rows_for("sft", name=write_jsonl(tmp_path / "rows.jsonl", []), streaming=True)
    bad = rows_for(
        "sft",
        None,
        name=write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}] * 5 + [{"words": "b"}]),
        streaming=True,
        bad_rows="error",
    )
    with pytest.raises(UserError, match="row 6: column 'text' is missing; found words"):
        list(bad.epoch(0))
    empty = rows_for(
        "sft", name=write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}] * 30 + [{"text": " "}]), streaming=True
    )
    assert len(list(empty.epoch(0))) == 30 and len(empty.bad) == 1 and "row 31" in empty.bad[0]
    assert len(empty.head(31)) == 30 and len(empty.head(31).bad) == 1
    late = [{"text": "a"}] * 200 + [{"words": "b"}] * 11  # the 11th of 211 is more than one in twenty
    with pytest.raises(UserError, match=r"row 201: column 'text' is missing.*11 such rows of 211"):
        list(rows_for("sft", name=write_jsonl(tmp_path / "rows.jsonl", late), streaming=True).epoch(0))
