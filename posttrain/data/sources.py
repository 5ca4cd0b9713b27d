"""Where rows come from: a file, a folder of files, the hub, the embedded sets; whole, or one by one while training.

Everything here yields raw rows, as they stand in the source; formats.py says what they mean, files.py how a file is
read.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain import hub
from posttrain.data import procedural
from posttrain.data.files import FILE_KINDS, read_file, rows_of
from posttrain.errors import UserError, reason
from posttrain.tiny import data as tiny_data
from posttrain.tiny import names as tiny

EMBEDDED = ", ".join([*tiny_data.DATASETS, *tiny.SAMPLED])
SPLITS = {"train": ("train", "training"), "test": ("test", "eval"), "validation": ("validation", "valid", "val", "dev")}


class Shards(Sequence):
    """The rows of several files as one sequence that knows which file a row stands in."""

    def __init__(self, files: list[Path], parts: list[Sequence[dict]]):
        self.files, self.parts = files, parts
        self.ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect.bisect_right(self.ends, index)
        return part, index - (self.ends[part - 1] if part else 0)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]  # one row at a time
        part, row = self._find(index)
        return self.parts[part][row]

    def place(self, index: int) -> tuple[str, int]:
        part, row = self._find(index)
        return str(self.files[part]), row + 1


def read(
    name: str, *, subset: str | None = None, split: str = "train", task: dict[str, Any] | None = None
) -> Sequence[dict]:
    """All rows of one source. A Dataset of the library is left as it is: it need not fit in memory."""
    if procedural.is_task(name):
        return procedural.rows(name, split, task or {})
    if is_embedded(name):
        return _embedded(name, split)
    if not is_local(name):
        return _from_hub(name, subset, split, streaming=False)
    path = Path(name).expanduser()
    if _is_saved_dataset(path):
        return _saved_to_disk(path, split)
    files = local_files(path, split)
    return read_file(files[0]) if files == [path] else Shards(files, [read_file(file) for file in files])


def iterate(
    name: str, *, subset: str | None = None, split: str = "train", task: dict[str, Any] | None = None
) -> Iterator[tuple[dict, tuple[str, int]]]:
    """The same rows one by one with their places, (source or file, row number), without ever holding them all."""
    path = Path(name).expanduser()
    if is_embedded(name) or procedural.is_task(name) or (is_local(name) and _is_saved_dataset(path)):
        parts: list[tuple[str, Any]] = [(name, read(name, subset=subset, split=split, task=task))]
    elif not is_local(name):
        parts = [(name, _from_hub(name, subset, split, streaming=True))]
    else:
        parts = [(str(file), rows_of(file)) for file in local_files(path, split)]
    for source, rows in parts:
        numbered = enumerate(rows, start=1)
        while True:
            try:
                number, row = next(numbered)
            except StopIteration:
                break
            except UserError:
                raise
            # whatever a broken file or a lost connection makes the library say in the middle
            except Exception as error:
                raise UserError(f"{source}: cannot be read any further: {reason(error, innermost=True)}") from None
            yield row, (source, number)


def is_embedded(name: str) -> bool:
    return name in tiny_data.DATASETS or name in tiny.SAMPLED or name == tiny_data.TEXT


def _embedded(name: str, split: str) -> list[dict]:
    if split not in ("train", "test"):
        raise UserError(f"data.split: {name} has the splits train and test, got '{split}'")
    if name == tiny_data.TEXT:
        raise UserError(f"data.name: {name} is text without an end, for loops.pretrain; the others are {EMBEDDED}")
    return list(read_file(tiny.path_of(name, split))) if name in tiny.SAMPLED else tiny_data.rows(name, split)


def is_local(name: str) -> bool:
    """Is it a path (also one that is not there), not a hub name?"""
    path = Path(name).expanduser()
    return path.suffix.lower() in FILE_KINDS or path.exists() or name.startswith(("/", "./", "../", "~"))


def local_files(path: Path, split: str = "train") -> list[Path]:
    """The data files that `path` stands for. In a folder, a file belongs to the split whose name is a word in it."""
    if path.is_file():
        if path.suffix.lower() not in FILE_KINDS:
            raise UserError(f"{path}: expected a {', '.join(FILE_KINDS)} file")
        if split != "train":
            raise UserError(f"data.split: a file has no split '{split}'; leave it out, or name another file")
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such data file")
    files = _data_files(path) or _data_files(path / "data")  # hub sets keep theirs in data/
    if not files:
        raise UserError(f"{path}: no {', '.join(FILE_KINDS)} file in this folder")
    named = [p for p in files if re.match(rf"{re.escape(split.lower())}([-_.]|$)", p.stem.lower())]
    chosen = named if named and split != "train" else [p for p in files if _split_of(p) == _split_word(split)]
    if not chosen:
        raise UserError(f"data.split: no file in {path} is called '{split}'; found {', '.join(p.name for p in files)}")
    return chosen


def _data_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    no_data = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json")
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in FILE_KINDS and p.name not in no_data)


def _split_word(word: str) -> str:
    """dev, val, valid -> validation; a word that is no split's stays."""
    return next((split for split, words in SPLITS.items() if word.lower() in words), word)


def _split_of(path: Path) -> str:
    """gsm8k_test.jsonl -> test, train-00000-of-00002.parquet -> train, testimonials.jsonl -> train."""
    words = re.split(r"[-_.\s]", path.stem.lower())
    return next((split for word in words if (split := _split_word(word)) in SPLITS), "train")


# ---------------------------------------------------------------- through the datasets library


def _is_saved_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _saved_to_disk(path: Path, split: str) -> Any:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:
        raise UserError(
            f"{path}: looks like a data set saved by save_to_disk, but: {reason(error, innermost=True)}"
        ) from None
    if not isinstance(found, datasets.DatasetDict):
        return found
    if split not in found:
        raise UserError(f"data.split: {path} has the splits {', '.join(found)}, got '{split}'")
    return found[split]


def _from_hub(name: str, subset: str | None, split: str, *, streaming: bool) -> Any:
    import datasets

    hub.use_cache_if_unreachable()
    try:
        return datasets.load_dataset(name, subset, split=split, streaming=streaming)
    except Exception as error:
        raise UserError(
            f"data.name '{name}': no such file, not an embedded set ({EMBEDDED}), and the hub says: {reason(error, innermost=True)}"
        ) from None
