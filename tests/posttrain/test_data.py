import json

import pytest

from posttrain.data import load_rows, read_file
from posttrain.errors import UserError
from posttrain.keys import Data

USER, REPLY = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}


def jsonl(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return str(path)


def load(method, rows, **data):
    return load_rows(Data(**data), method, rows)


@pytest.mark.parametrize(
    ("row", "recognised"),
    [
        ({"messages": [USER, REPLY]}, "conversations (messages)"),
        ({"prompt": "Hi.", "completion": "Hello."}, "prompt + completion"),
        ({"prompt": [USER], "completion": [REPLY]}, "prompt + completion"),
    ],
)
def test_sft_forms_that_mean_the_same(row, recognised):
    got = load("sft", [row])
    assert got.rows == [{"messages": [USER, REPLY]}] and got.recognised_as == recognised


def test_gsm8k_as_shipped():
    row = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 24"}
    assert load("sft", [row]).rows[0]["messages"][1]["content"] == "48/2 = 24 clips.\n#### 24"
    rl = load("grpo", [row]).rows[0]
    assert rl["prompt"] == [{"role": "user", "content": "How many?"}] and rl["answer"] == row["answer"]


def test_pairs_and_text_and_columns():
    pair = load("dpo", [{"prompt": "Hi.", "chosen": [REPLY], "rejected": "Go away."}]).rows[0]
    assert pair == {"prompt": [USER], "chosen": "Hello.", "rejected": "Go away."}
    assert load("sft", [{"text": "abc"}]).rows == [{"text": "abc"}]
    assert load("grpo", [{"prompt": "Hi.", "answer": 3, "level": "easy"}]).rows[0] == {
        "prompt": [USER],
        "answer": 3,
        "level": "easy",
    }


def test_system_prompt_is_added_where_there_is_none():
    own = {"role": "system", "content": "own"}
    got = load("sft", [{"messages": [USER, REPLY]}, {"messages": [own, USER, REPLY]}], system_prompt="Be kind.")
    assert [r["messages"][0]["content"] for r in got.rows] == ["Be kind.", "own"]


def test_files(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "rows.csv").write_text("prompt,completion\na,b\nc,d\n")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    jsonl(tmp_path, rows)
    for kind in ("json", "jsonl", "csv", "parquet"):
        assert read_file(tmp_path / f"rows.{kind}") == rows
    assert len(load("sft", None, name=str(tmp_path / "rows.jsonl"), max_samples=1)) == 1


@pytest.mark.parametrize(
    ("method", "row", "message"),
    [
        ("sft", {"messages": []}, "rows, row 2: 'messages' must be a list of messages"),
        ("sft", {"messages": [USER]}, "no assistant message"),
        ("sft", {"messages": [USER, {"role": "assistant", "content": "  "}]}, "empty assistant turn"),
        ("sft", {"messages": [USER, {"role": "robot", "content": "x"}]}, "message 2: expected"),
        ("sft", {"messages": [USER, {"role": "assistant", "content": 3}]}, "must be text, got int"),
        ("sft", {"prompt": "x"}, "column 'messages' is missing; found prompt"),
        ("dpo", {"prompt": "x", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ("dpo", {"prompt": "x", "chosen": "", "rejected": "a"}, "'chosen' is empty"),
        ("dpo", {"prompt": "", "chosen": "b", "rejected": "a"}, "the prompt is empty"),
        ("grpo", {"prompt": [USER, REPLY]}, "ends with an assistant message"),
        ("sft", {"messages": [REPLY, USER, REPLY]}, "begins with an assistant message"),
    ],
)
def test_a_bad_row_is_named(method, row, message):
    good = {
        "sft": {"messages": [USER, REPLY]},
        "dpo": {"prompt": "x", "chosen": "a", "rejected": "b"},
        "grpo": {"prompt": "x"},
    }[method]
    with pytest.raises(UserError) as error:
        load(method, [good, row])
    assert "row 2" in str(error.value) and message in str(error.value)


def test_a_few_rows_that_teach_nothing_are_left_out_and_counted():
    good = {"prompt": "x", "chosen": "a", "rejected": "b"}
    got = load("dpo", [good] * 30 + [good | {"chosen": ""}] + [good] * 9)
    assert len(got) == 39 and got.skipped == ["row 31: 'chosen' is empty: an empty answer teaches nothing"]
    assert got.where(30) == "rows, row 32"  # numbers stay those of the source


def test_u2028_inside_a_json_string(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "a\u2028b", "completion": "c"}\n\n{"prompt": "d", "completion": "e"}\n', encoding="utf-8"
    )
    assert len(read_file(tmp_path / "rows.jsonl")) == 2


def test_bad_sources(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        load("sft", None, name=str(tmp_path / "latin.jsonl"))
    with pytest.raises(UserError, match="row 1: expected an object"):
        load("sft", [3])
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    with pytest.raises(UserError, match=r"broken.jsonl, line 2: not valid JSON"):
        load("sft", None, name=str(broken))
    (tmp_path / "one.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="expected a list of rows"):
        load("sft", None, name=str(tmp_path / "one.json"))
    (tmp_path / "bad.json").write_text('[\n{"a": 1},\n{"b" 2}]')
    with pytest.raises(UserError, match=r"bad.json, line 3: not valid JSON"):
        load("sft", None, name=str(tmp_path / "bad.json"))
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        load("sft", None, name=str(tmp_path / "bad.parquet"))
    with pytest.raises(UserError, match="no such data file"):
        load("sft", None, name=str(tmp_path / "missing.jsonl"))
    with pytest.raises(UserError, match="a file has no split 'test'"):
        load("sft", None, name=str(broken), split="test")
    with pytest.raises(UserError, match="no rows"):
        load("sft", [])
    with pytest.raises(UserError, match="expected the columns prompt, chosen and rejected; found a, b"):
        load("dpo", [{"a": 1, "b": 2}])
    with pytest.raises(UserError, match="splits train and test"):
        load("sft", None, name="tiny-sft", split="validation")
    with pytest.raises(UserError, match="not an embedded set"):
        load("sft", None, name="nobody/nothing")


def test_a_list_item_that_is_no_row(tmp_path):
    with pytest.raises(UserError, match="row 2: expected an object"):
        load("sft", None, name=jsonl(tmp_path, [{"text": "a"}, 3]))
