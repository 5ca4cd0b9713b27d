"""Where rows come from: a file, a folder of files, the hub, the embedded sets; whole, or one by one while training.

Everything here yields raw rows, as they stand in the source; formats.py says what they mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain import hub
from posttrain.errors import UserError

FILE_KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
SPLITS = {"train": ("train",), "test": ("test", "eval"), "validation": ("validation", "valid", "val", "dev")}


def read(name: str, *, subset: str | None = None, split: str = "train") -> Sequence[dict]:
    """All rows of one source. A Dataset of the library is left as it is: it need not fit in memory."""
    from posttrain import tiny_data

    if name in tiny_data.DATASETS:
        if split not in ("train", "test"):
            raise UserError(f"data.split: {name} has the splits train and test, got '{split}'")
        return tiny_data.rows(name, split)
    if not is_local(name):
        return _from_library(name, subset, split, streaming=False)
    path = Path(name).expanduser()
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return _saved_to_disk(path, split)
    files = local_files(path, split)
    return read_file(files[0]) if len(files) == 1 else [row for file in files for row in read_file(file)]


def iterate(name: str, *, subset: str | None = None, split: str = "train") -> Iterator[dict]:
    """The same rows one by one, without ever holding them all."""
    from posttrain import tiny_data

    if name in tiny_data.DATASETS or (is_local(name) and Path(name).expanduser().suffix == ".json"):
        yield from read(name, subset=subset, split=split)  # a JSON list has no beginning that could be read alone
    elif not is_local(name):
        yield from _from_library(name, subset, split, streaming=True)
    else:
        for file in local_files(Path(name).expanduser(), split):
            if file.suffix == ".jsonl":
                yield from _lines(file)
            else:
                yield from _from_files(file, streaming=True)


def is_local(name: str) -> bool:
    """Is it a path (also one that is not there), not a hub name?"""
    path = Path(name).expanduser()
    return path.suffix in FILE_KINDS or path.exists() or name.startswith(("/", "./", "../", "~"))


def local_files(path: Path, split: str = "train") -> list[Path]:
    """The data files that `path` stands for. In a folder, names that begin with a split's belong to that split."""
    if not path.exists():
        raise UserError(f"{path}: no such data file")
    if path.is_file():
        if path.suffix not in FILE_KINDS:
            raise UserError(f"{path}: expected a {', '.join(FILE_KINDS)} file")
        if split != "train":
            raise UserError(f"data.split: a file has no split '{split}'; leave it out, or name another file")
        return [path]
    files = sorted(p for p in path.iterdir() if p.suffix in FILE_KINDS)
    if not files:
        raise UserError(f"{path}: no {', '.join(FILE_KINDS)} file in this folder")
    marked = {p: s for p in files for s, words in SPLITS.items() if p.stem.lower().startswith(words)}
    chosen = [p for p in files if marked.get(p, "train") == split]
    if not chosen:
        raise UserError(
            f"data.split: no file in {path} begins with '{split}'; found {', '.join(p.name for p in files)}"
        )
    return chosen


def read_file(path: Path) -> Sequence[dict]:
    if path.suffix == ".jsonl":
        return list(_lines(path))
    if path.suffix == ".json":
        rows = _json(_text(path), str(path))
        if not isinstance(rows, list):
            raise UserError(
                f"{path}: expected a list of rows, found one {type(rows).__name__}; one row per line belongs in a .jsonl file"
            )
        return rows
    return _from_files(path, streaming=False)


def _lines(path: Path) -> Iterator[dict]:
    try:
        with open(path, encoding="utf-8", newline="\n") as file:  # only \n ends a line: JSON text may hold U+2028
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _json(line, f"{path}, line {number}")
    except UnicodeDecodeError as error:
        raise _not_text(path, error) from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _not_text(path, error) from None


def _not_text(path: Path, error: UnicodeDecodeError) -> UserError:
    return UserError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}; convert the file")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text.strip() else ""
        raise UserError(f"{where}{line}: not valid JSON: {error.msg} at column {error.colno}") from None


# ---------------------------------------------------------------- through the datasets library


def _from_files(path: Path, *, streaming: bool) -> Any:
    import datasets

    try:
        with _quiet(datasets):
            return datasets.load_dataset(
                FILE_KINDS[path.suffix], data_files=str(path), split="train", streaming=streaming
            )
    except Exception as error:
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]}: {_reason(error)}") from None


def _saved_to_disk(path: Path, split: str) -> Any:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:
        raise UserError(f"{path}: looks like a data set saved by save_to_disk, but: {_reason(error)}") from None
    if not isinstance(found, datasets.DatasetDict):
        return found
    if split not in found:
        raise UserError(f"data.split: {path} has the splits {', '.join(found)}, got '{split}'")
    return found[split]


def _from_library(name: str, subset: str | None, split: str, *, streaming: bool) -> Any:
    import datasets

    hub.use_cache_if_unreachable()
    try:
        return datasets.load_dataset(name, subset, split=split, streaming=streaming)
    except Exception as error:
        raise UserError(
            f"data.name '{name}': no such file, not an embedded set (tiny-sft, tiny-identity, tiny-math), and the hub says: {_reason(error)}"
        ) from None


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause: the library wraps the reason in its own errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]


class _quiet:
    """The library's progress bars over a local file: noise."""

    def __init__(self, datasets: Any):
        self.datasets = datasets

    def __enter__(self) -> None:
        self.were_on = self.datasets.utils.logging.is_progress_bar_enabled()
        self.datasets.disable_progress_bars()

    def __exit__(self, *_: object) -> None:
        if self.were_on:
            self.datasets.enable_progress_bars()
