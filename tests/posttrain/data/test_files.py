"""Files of rows: what other tools write, and every problem told with its line."""

import errno
import json
import os
from pathlib import Path

import pyarrow.parquet
import pytest
from kit import rows_for, write_jsonl

from posttrain.data import files
from posttrain.data.files import JsonLines, read_file, write_rows
from posttrain.data.sources import iterate
from posttrain.errors import UserError


def test_a_csv_cell_is_text_whatever_it_looks_like(tmp_path):
    (tmp_path / "rows.csv").write_bytes(
        '\ufeffquestion,answer\r\n"2+2, or?",007\r\nnull,True\r\n"two\nlines",\r\n'.encode()
    )
    assert list(read_file(tmp_path / "rows.csv")) == [
        {"question": "2+2, or?", "answer": "007"}, {"question": "null", "answer": "True"}, {"question": "two\nlines", "answer": None},
    ]  # fmt: skip


def test_what_other_tools_write(tmp_path):
    (tmp_path / "bom.jsonl").write_bytes('\ufeff{"text": "a"}\r\n{"text": "b"}\r\n'.encode())
    (tmp_path / "lines.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    for name in ("bom.jsonl", "lines.json"):
        assert list(read_file(tmp_path / name)) == [{"text": "a"}, {"text": "b"}]
        assert [row for row, _ in iterate(str(tmp_path / name))] == [{"text": "a"}, {"text": "b"}]


def test_rows_of_a_large_file_are_parsed_when_they_are_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"text": "a"}\n\n  \r\n{"text": "ü"}\n{"text": '.encode())
    parsed = []
    monkeypatch.setattr(files, "parse_json", lambda line, where: parsed.append(where) or json.loads(line))
    rows = read_file(path)
    assert len(rows) == 3 and not parsed
    assert rows[1] == {"text": "ü"} and rows[-3] == {"text": "a"} and parsed == [f"{path}, line 4", f"{path}, line 1"]
    with pytest.raises(IndexError):
        rows[3]


def test_one_of_many_files_is_open_and_one_that_changes_is_refused(tmp_path):
    names = [write_jsonl(tmp_path / f"{i}.jsonl", [{"text": f"{i} {k}"} for k in range(3)]) for i in range(5)]
    shards = [read_file(Path(name)) for name in names]
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    assert [rows[k]["text"] for k in range(3) for rows in shards] == [f"{i} {k}" for k in range(3) for i in range(5)]
    assert not before or len(os.listdir("/proc/self/fd")) <= before + 1
    assert JsonLines.opened is None  # the last row of a file was read last
    Path(names[0]).write_text('{"text": "another"}\n' * 3)
    assert shards[4][0] == {"text": "4 0"}
    with pytest.raises(UserError, match=r"0.jsonl: the file has changed since it was looked at"):
        shards[0][1]


def test_u2028_inside_a_json_string(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "a\u2028b", "completion": "c"}\n\n{"prompt": "d", "completion": "e"}\n', encoding="utf-8"
    )
    assert len(read_file(tmp_path / "rows.jsonl")) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "missing.jsonl: no such data file"),
        ("latin.jsonl", '{"text": "é"}'.encode("latin-1"), "not UTF-8 text"),
        ("broken.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": \n', "broken.jsonl, line 2: not valid JSON"),
        ("bad.json", b'[\n{"a": 1},\n{"b" 2}]', "bad.json, line 3: not valid JSON"),
        ("one.json", b'{"a": 1}', "expected a list of rows, found one dict"),
        ("ragged.csv", b"prompt,completion\na,b,c\n", "ragged.csv, line 2: expected 2 cells as in the first line"),
        ("short.csv", b"prompt,completion\na,b\nc\n", "short.csv, line 3: expected 2 cells"),
        ("huge.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "huge.jsonl, line 1: not JSON that can be read"),
        ("deep.jsonl", b"[" * 100_000, "deep.jsonl, line 1: not"),
        ("list.jsonl", b'{"text": "a"}\n3', "row 2: expected an object with named columns, found int"),
        ("twice.csv", b"prompt,completion,prompt\na,b,c\n", "twice.csv, line 1: two columns are called 'prompt'"),
        (
            "twice.jsonl",
            b'{"text": "a", "text": "b"}',
            "twice.jsonl, line 1: not JSON that can be read: an object has the key 'text' twice",
        ),
        (
            "control.jsonl",
            b'{"text": "\x01"}',
            "control.jsonl, line 1: not valid JSON: Invalid control character at column 11",
        ),
        ("bad.parquet", b"no parquet", "bad.parquet: cannot be read as parquet"),
        ("rows.txt", b"text", "rows.txt: expected a .jsonl, .json, .csv, .parquet file"),
        ("empty.jsonl", b"", "empty.jsonl: no rows"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_bad_files(tmp_path, name, content, message, streaming):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        rows = rows_for("sft", name=str(tmp_path / name), streaming=streaming)
        if streaming:
            list(rows.epoch(0))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_parquet_says_one_sentence(tmp_path, capfd):
    (tmp_path / "bad.parquet").write_text("garbage")
    with pytest.raises(UserError, match=r"bad.parquet: cannot be read as parquet: "):
        read_file(tmp_path / "bad.parquet")
    assert capfd.readouterr() == ("", "")
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "none.parquet")
    with pytest.raises(UserError, match=r"none.parquet: no rows$"):
        rows_for("sft", name=str(tmp_path / "none.parquet"))


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    out.write_text("older")
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"rows.jsonl: cannot be written: No space left on device$"),
    ):
        patch.setattr(files.os, "replace", full)
        write_rows(str(out), [{"text": "a"}])
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"] and out.read_text() == "older"
    (tmp_path / "rows.jsonl.part").write_text("mine")
    with pytest.raises(UserError, match=r"rows.jsonl.part is in the way of what is written to .*rows.jsonl: remove it"):
        write_rows(str(out), [{"text": "a"}])
    assert (tmp_path / "rows.jsonl.part").read_text() == "mine" and out.read_text() == "older"


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
