"""One raw row after the other: the format of the first shows how, and a bad one is counted or stops the run."""

import pytest
from kit import bytelevel_tokenizer, rows_for

from posttrain.config.supervised import SftData as Data
from posttrain.errors import UserError
from posttrain.tokens.examples import sft_examples

TWICE = {"messages": [{"role": "user", "content": "a"}] * 2 + [{"role": "assistant", "content": "b"}]}
FINE = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def test_a_few_rows_that_teach_nothing_are_left_out_and_counted():
    good = {"prompt": "x", "chosen": "a", "rejected": "b"}
    got = rows_for("dpo", [good] * 30 + [good | {"chosen": ""}] + [good] * 9)
    assert len(got) == 39 and got.bad == ["rows, row 31: 'chosen' is empty: an empty answer teaches nothing"]
    assert got.where(30) == "rows, row 32"  # numbers stay those of the source
    with pytest.raises(
        UserError, match=r"rows, row 1: 'chosen' is empty.*\(3 such rows of 40; up to 5% would be left out"
    ):
        rows_for("dpo", [good | {"chosen": ""}] * 3 + [good] * 37)


def test_a_bad_row_is_left_out_counted_and_told_or_stops_the_run(tmp_path):
    rows = rows_for("sft", [FINE] * 30 + [TWICE] + [FINE] * 9)
    assert len(rows) == 39 and len(rows.bad) == 1
    assert rows.bad[0].startswith("rows, row 31: 'messages', message 2: roles out of order")
    with pytest.raises(
        UserError, match=r"row 31: .*roles out of order.* Mend it, set data.bad_rows: drop, or clean the file"
    ):
        rows_for("sft", [FINE] * 30 + [TWICE] + [FINE] * 9, bad_rows="error")
    with pytest.raises(UserError, match=r"row 1: .*2 such rows of 39; up to 5% would be left out"):
        rows_for("sft", [TWICE] * 2 + [FINE] * 37)
    encoded = sft_examples(rows, bytelevel_tokenizer(), 100, Data())
    assert "; left out 1 that no loop can use (first: rows, row 31: " in encoded.summary()


def test_the_format_is_that_of_the_first_row_with_something_in_it():
    rows = [{"prompt": "a", "completion": None}] + [{"prompt": "a", "completion": "b"}] * 39
    got = rows_for("sft", rows)
    assert len(got) == 39 and got.bad == ["rows, row 1: 'completion' is empty: an empty answer teaches nothing"]
    with pytest.raises(UserError, match=r"found prompt, completion \(empty\)"):
        rows_for("sft", rows[:1])


def test_system_prompt_is_added_where_there_is_none():
    got = rows_for(
        "sft",
        [FINE, {"messages": [{"role": "system", "content": "Be kind."}, *FINE["messages"]]}],
        system_prompt="New.",
    )
    assert [r["messages"][0]["content"] for r in got.rows] == ["New.", "Be kind."]
