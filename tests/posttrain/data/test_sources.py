"""Where rows come from, and what is said when they do not come."""

import json

import pytest

from posttrain.config.supervised import SftData as Data
from posttrain.data.files import read_file
from posttrain.data.rows import load_rows
from posttrain.data.sources import iterate, local_files, read
from posttrain.errors import UserError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


def write(path, rows=ROWS):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(r) for r in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        path.write_text("prompt,completion\n" + "\n".join(f"{r['prompt']},{r['completion']}" for r in rows))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def load(name, **data):
    return load_rows(Data(name=str(name), **data), "sft")


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_files_whole_and_one_by_one(tmp_path, kind):
    name = write(tmp_path / f"rows.{kind}")
    assert list(read(name)) == [row for row, _ in iterate(name)] == ROWS
    assert [place for _, place in iterate(name)] == [(name, 1), (name, 2)]
    assert len(load(name, max_samples=1)) == 1


def test_folders(tmp_path):
    write(tmp_path / "one.jsonl")
    write(tmp_path / "two.parquet")
    (tmp_path / "notes.txt").write_text("not data")
    assert list(read(str(tmp_path))) == ROWS * 2 == [row for row, _ in iterate(str(tmp_path))]
    write(tmp_path / "test.csv", ROWS[:1])
    assert list(read(str(tmp_path))) == ROWS * 2  # what is called test is not for training
    assert list(read(str(tmp_path), split="test")) == ROWS[:1]
    with pytest.raises(
        UserError, match=r"no file in .* is called 'validation'; found one.jsonl, test.csv, two.parquet"
    ):
        local_files(tmp_path, "validation")


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (["testimonials.jsonl", "developers.jsonl", "values.csv"], "train", ["developers.jsonl", "testimonials.jsonl", "values.csv"]),
        (["gsm8k_train.jsonl", "gsm8k_test.jsonl"], "train", ["gsm8k_train.jsonl"]),
        (["gsm8k_train.jsonl", "gsm8k_test.jsonl"], "test", ["gsm8k_test.jsonl"]),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"], "train",
         ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]),
        (["train_prefs-0.parquet", "train_sft-0.parquet"], "train_prefs", ["train_prefs-0.parquet"]),
        (["train.jsonl", "val.jsonl"], "validation", ["val.jsonl"]),
        (["train.jsonl", "val.jsonl"], "val", ["val.jsonl"]),
        (["A.JSONL", "dataset_infos.json"], "train", ["A.JSONL"]),
    ],
)  # fmt: skip
def test_which_files_of_a_folder_are_a_split(tmp_path, names, split, chosen):
    for inside in (tmp_path, tmp_path / "data"):  # a clone of a hub set has them in data/
        inside.mkdir(exist_ok=True)
        for name in names:
            (inside / name).write_text("[]")
        assert [p.name for p in local_files(tmp_path, split)] == chosen
        for name in names:
            (inside / name).unlink()


def test_folders_that_the_datasets_library_saved(tmp_path):
    from datasets import Dataset, DatasetDict

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "plain")
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "splits")
    assert list(read(str(tmp_path / "plain"))) == list(read(str(tmp_path / "splits"))) == ROWS
    assert list(read(str(tmp_path / "splits"), split="test")) == ROWS[:1]
    with pytest.raises(UserError, match="has the splits train, test, got 'dev'"):
        read(str(tmp_path / "splits"), split="dev")
    assert len(load(tmp_path / "plain")) == 2 == len(list(load(tmp_path / "plain", streaming=True).epoch(0)))


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


def test_u2028_inside_a_json_string(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "a\u2028b", "completion": "c"}\n\n{"prompt": "d", "completion": "e"}\n', encoding="utf-8"
    )
    assert len(read_file(tmp_path / "rows.jsonl")) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "missing.jsonl: no such data file"),
        ("latin.jsonl", '{"text": "é"}'.encode("latin-1"), "latin.jsonl: not UTF-8 text"),
        ("broken.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": \n', "broken.jsonl, line 2: not valid JSON"),
        ("bad.json", b'[\n{"a": 1},\n{"b" 2}]', "bad.json, line 3: not valid JSON"),
        ("one.json", b'{"a": 1}', "expected a list of rows, found one dict"),
        ("ragged.csv", b"prompt,completion\na,b,c\n", "ragged.csv, line 2: expected 2 cells as in the first line"),
        ("short.csv", b"prompt,completion\na,b\nc\n", "short.csv, line 3: expected 2 cells"),
        ("huge.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "huge.jsonl, line 1: not JSON that can be read"),
        ("deep.jsonl", b"[" * 100_000, "deep.jsonl, line 1: not"),
        ("list.jsonl", b'{"text": "a"}\n3', "row 2: expected an object with named columns, found int"),
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
        rows = load(tmp_path / name, streaming=streaming)
        if streaming:
            list(rows.epoch(0))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_names(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no .jsonl, .json, .csv, .parquet file in this folder"):
        load(tmp_path / "empty")
    with pytest.raises(UserError, match="a file has no split 'test'"):
        load(write(tmp_path / "rows.jsonl"), split="test")
    with pytest.raises(UserError, match="splits train and test"):
        load("tiny-sft", split="validation")
    for streaming in (False, True):
        with pytest.raises(
            UserError, match=r"data.name 'nobody/nothing': no such file, not an embedded set.*the hub says"
        ):
            load("nobody/nothing", streaming=streaming)
    with pytest.raises(UserError, match=r"data.name is missing"):
        load_rows(Data(), "sft")
