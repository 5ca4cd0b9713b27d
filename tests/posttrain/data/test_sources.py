"""Where rows come from, and what is said when they do not come."""

import json

import pytest
from kit import rows_for

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


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_files_whole_and_one_by_one(tmp_path, kind):
    name = write(tmp_path / f"rows.{kind}")
    assert list(read(name)) == [row for row, _ in iterate(name)] == ROWS
    assert [place for _, place in iterate(name)] == [(name, 1), (name, 2)]
    assert len(rows_for("sft", name=name, max_samples=1)) == 1


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
    assert (
        len(rows_for("sft", name=str(tmp_path / "plain")))
        == 2
        == len(list(rows_for("sft", name=str(tmp_path / "plain"), streaming=True).epoch(0)))
    )


def test_bad_names(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no .jsonl, .json, .csv, .parquet file in this folder"):
        rows_for("sft", name=str(tmp_path / "empty"))
    with pytest.raises(UserError, match="a file has no split 'test'"):
        rows_for("sft", name=write(tmp_path / "rows.jsonl"), split="test")
    with pytest.raises(UserError, match="splits train and test"):
        rows_for("sft", name="tiny-sft", split="validation")
    for streaming in (False, True):
        with pytest.raises(
            UserError, match=r"data.name 'nobody/nothing': no such file, not an embedded set.*the hub says"
        ):
            rows_for("sft", name="nobody/nothing", streaming=streaming)
    with pytest.raises(UserError, match=r"data.name is missing"):
        rows_for("sft")
