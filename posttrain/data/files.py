"""One file of rows, read and written: .jsonl, .json, .csv, .parquet. Every problem is told with its line."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from posttrain.errors import UserError, reason, writing

FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet")


def read_file(path: Path) -> Sequence[dict]:
    if path.suffix.lower() == ".parquet":
        return _parquet(path, streaming=False)
    return JsonLines(path) if path.suffix.lower() == ".jsonl" else list(rows_of(path))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around what reads `path`: text in another encoding, and what the file system says, become one sentence."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}; convert the file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def rows_of(path: Path) -> Iterator[dict]:
    """The rows of one file, as they are read."""
    kind = path.suffix.lower()
    with reading(path):
        if kind == ".parquet":
            yield from _parquet(path, streaming=True)
        elif kind == ".csv":
            yield from _csv(path)
        elif kind == ".json":
            yield from _list(path)
        else:
            yield from _lines(path)


class JsonLines(Sequence):
    """The rows of a .jsonl file, each parsed when it is asked for: as objects they take four times the file. One such
    file is open at a time (a folder may have more of them than a process may open), until its last row is read."""

    opened: ClassVar[tuple[JsonLines, BinaryIO] | None] = None

    def __init__(self, path: Path):
        self.path, self.starts, self.numbers = path, array("Q"), array("Q")
        with reading(path), open(path, "rb") as file:
            self.state = _state(file)
            start = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
            file.seek(start)
            for number, line in enumerate(file, start=1):  # only \n ends a line: JSON text may hold U+2028
                if line.strip():
                    self.starts.append(start)
                    self.numbers.append(number)
                start += len(line)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]  # one row at a time
        start, where = self.starts[index], f"{self.path}, line {self.numbers[index]}"
        with reading(self.path):
            file = self._file()
            file.seek(start)
            line = file.readline()
        if start == self.starts[-1]:
            self._close()
        try:
            return parse_json(line.decode(), where)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}: not UTF-8 text: {error.reason} at byte {error.start}; convert the file"
            ) from None

    def _file(self) -> BinaryIO:
        before = JsonLines.opened
        if before is not None and before[0] is self:
            return before[1]
        self._close()
        file = open(self.path, "rb")  # noqa: SIM115
        JsonLines.opened = (self, file)
        if _state(file) != self.state:
            raise UserError(f"{self.path}: the file has changed since it was looked at: start again")
        return file

    @staticmethod
    def _close() -> None:
        if JsonLines.opened is not None:
            JsonLines.opened[1].close()
            JsonLines.opened = None


def _state(file: BinaryIO) -> tuple[int, int]:
    about = os.fstat(file.fileno())
    return about.st_size, about.st_mtime_ns


def _lines(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8-sig", newline="\n") as file:  # only \n ends a line: JSON text may hold U+2028
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield parse_json(line, f"{path}, line {number}")


def _list(path: Path) -> Iterator[dict]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = parse_json(text, str(path))
    except UserError as error:
        if "Extra data" not in str(error):
            raise
        rows = None  # one object per line in a file called .json: many hub sets
    if rows is None:
        yield from _lines(path)
    elif isinstance(rows, list):
        yield from rows
    else:
        raise UserError(
            f"{path}: expected a list of rows, found one {type(rows).__name__}; one row per line belongs in a .jsonl file"
        )


def _csv(path: Path) -> Iterator[dict]:
    """Every cell is text, an empty one is missing: no guessing of types, so 007 and None stay what they are."""
    csv.field_size_limit(2**31 - 1)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey=None, strict=True)
        try:
            if twice := _twice(reader.fieldnames or []):
                raise UserError(f"{path}, line 1: two columns are called '{twice}'")
            for row in reader:
                if None in row or any(value is None for value in row.values()):
                    raise UserError(
                        f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or [])} cells as in the first line"
                    )
                yield {name: value or None for name, value in row.items()}
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: not valid CSV: {error}") from None


def parse_json(text: str, where: str) -> Any:
    """where: the file, or the file and its line, for the message."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text.strip() else ""
        raise UserError(
            f"{where}{line}: not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON that can be read: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"an object has the key '{_twice([name for name, _ in pairs])}' twice")
    return found


def _twice(names: Sequence[str]) -> str | None:
    return next((name for i, name in enumerate(names) if name in names[:i]), None)


def _parquet(path: Path, *, streaming: bool) -> Any:
    import datasets
    from pyarrow.parquet import ParquetFile

    try:
        if ParquetFile(path).metadata.num_rows == 0:  # of which the library says what nobody understands
            return []
        with _quiet(datasets):
            return datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=streaming)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as parquet: {reason(error, innermost=True)}") from None


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


# ---------------------------------------------------------------- and back to a file


def refuse_out(*paths: str | None) -> None:
    """Before any work: is there a place to write to?"""
    for path in paths:
        if path is not None and (Path(path).suffix != ".jsonl" or Path(path).is_dir()):
            raise UserError(f"'{path}': expected the name of a .jsonl file to write to")


def write_rows(path: str, rows: list[dict[str, Any]]) -> None:
    """Whole or not at all: an older file of this name (it may be the one that was read) stays until all rows are
    written."""
    lines = []
    for number, row in enumerate(rows, start=1):
        try:
            lines.append(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")
        except (TypeError, ValueError) as error:
            raise UserError(
                f"row {number} cannot be written as JSON: {error}; --quality leaves broken text out"
            ) from None
    with whole_file(path) as file:
        file.writelines(lines)


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """A file to write bytes to, which becomes `path` when all is written: whole or not at all."""
    part = Path(f"{path}.part")
    with writing(path):
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(part, "xb")  # noqa: SIM115
        except FileExistsError:
            raise UserError(
                f"{part} is in the way of what is written to {path}: remove it, or name another file"
            ) from None
        try:
            with file:
                yield file
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
