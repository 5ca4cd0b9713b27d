"""Several sources and mixes of them: how many rows of each, and in which order."""

import collections

import pytest
from kit import rows_for, write_jsonl

from posttrain.data.rows import mix
from posttrain.errors import UserError


def letters(rows):
    return collections.Counter("a" if "text" in row else "b" for row in rows)


def test_several_sources_each_in_its_own_format(two):
    got = rows_for("sft", name=two)
    assert letters(got.rows) == {"a": 100, "b": 30}
    assert got.read == [
        f"100 rows as plain text, trained whole from {two[0]}",
        f"30 rows as prompt + completion from {two[1]}",
    ]
    assert got.where(100) == f"{two[1]}, row 1"


def test_weights_are_shares_until_one_source_runs_out_and_no_row_comes_twice(two):
    # 3 : 1, and b has 30 rows: 90 of a's 100
    got = rows_for("sft", name=two, weights=[3, 1])
    assert letters(got.rows) == {"a": 90, "b": 30} and len(set(got.places)) == 120
    again, other = rows_for("sft", name=two, weights=[3, 1]), rows_for("sft", name=two, weights=[3, 1], seed=1)
    assert again.places == got.places != other.places


def test_max_samples_takes_the_first_rows_and_of_several_sources_a_share_each(two):
    assert rows_for("sft", name=two[0], max_samples=2).rows == [{"text": "a0"}, {"text": "a1"}]
    assert letters(rows_for("sft", name=two, max_samples=13).rows) == {"a": 10, "b": 3}
    assert letters(rows_for("sft", name=two, weights=[1, 1], max_samples=13).rows) == {"a": 7, "b": 6}


def test_mix_by_hand():
    # w = (.2, .8) of (100, 40): 40 / .8 = 50 rows in all, 10 and 40
    assert [len(x) for x in mix([100, 40], [0.2, 0.8], None, 0)] == [10, 40]
    assert [len(x) for x in mix([5, 5, 5], None, 7, 0)] == [3, 2, 2]  # 7/3 each: the remainder to the first
    assert mix([3], None, 9, 0) == [range(3)]


def test_a_folder_is_one_source_that_knows_its_files(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}] * 3)
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b"}, {"text": 3}])
    with pytest.raises(UserError, match=r"b.jsonl, row 2: 'text' must be text"):
        rows_for("sft", name=str(tmp_path))
    got = rows_for("sft", name=str(tmp_path), max_samples=4)
    assert got.where(3) == f"{tmp_path}/b.jsonl, row 1" and got.read[0].endswith("(a.jsonl, b.jsonl)")
