"""A data file with what privacy.py (or analyzer.py) finds in it replaced, and nothing else: every string of every
column, however deep, in any format of formats.py.

JSON is rewritten as text: a string in which something was found is written again, every other byte stays, white space,
the order of keys and 1.0e5 among them. So is CSV, cell by cell. Of a Parquet file the columns in which something was
found are built again, with their type. A string that is itself JSON (the arguments of a tool call, messages in a cell)
is rewritten as JSON.

Keys and numbers are not changed: a key is a name that code looks for, a number could only become a string. Where they
look like something, that is counted and told.
"""

from __future__ import annotations

import collections
import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from posttrain.data.files import FILE_KINDS, parse_json, reading, rows_of, whole_file
from posttrain.data.privacy import Finder, substitute
from posttrain.errors import UserError

TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^"{}\[\],:]+', re.DOTALL)
CELL = re.compile(r'"[^"]*(?:""[^"]*)*"|[^,\r\n]+|,|\r\n|\r|\n')
TELLING = re.compile(r"[@\d]|//|www\.")  # without one of these a key is none of the kinds
BOM = "\ufeff"


@dataclass
class Redactor:
    """Rewrites values and counts what it finds, by the field it stands in ("messages[].content")."""

    find: Finder
    action: str = "replace"  # replace | mask | hash
    salt: bytes = b""
    rows: int = 0
    changed: int = 0  # rows
    found: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)  # (field, kind)
    left: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)  # in keys and numbers

    def text(self, text: str, where: str) -> str:
        if text[:1] in ("{", "[") and text[-1:] in ("}", "]") and _is_json(text):
            return self.json(text, where)
        parts, place = [], 0
        for kind, start, end in self.find(text):
            self.found[where, kind] += 1
            parts += [text[place:start], substitute(kind, text[start:end], self.action, self.salt)]
            place = end
        return "".join([*parts, text[place:]]) if parts else text

    def value(self, value: Any, where: str) -> Any:
        """A string, or what is built of strings; the same object where nothing was found."""
        if isinstance(value, str):
            return self.text(value, where)
        if isinstance(value, list):
            items = [self.value(item, f"{where}[]") for item in value]
            return value if all(new is old for new, old in zip(items, value, strict=True)) else items
        if isinstance(value, dict):
            pairs = {key: self.value(item, f"{where}.{key}") for key, item in value.items()}
            return value if all(pairs[key] is value[key] for key in pairs) else pairs
        if isinstance(value, int | float):
            self._leave(str(value), where, "a number")
        return value

    def json(self, raw: str, where: str = "") -> str:
        """JSON text -> the same text, but for the strings in which something was found."""
        out: list[str] = []
        name = where  # of the value that comes next
        inside: list[tuple[str, bool]] = []  # (name of each open list or object, is it an object)
        key_next = False
        for token in TOKEN.findall(raw):
            if token in ("{", "["):
                inside.append((name, token == "{"))
                key_next, name = token == "{", f"{name}[]" if token == "[" and inside[1:] else name
            elif token in ("}", "]"):
                inside.pop()
            elif token == ",":
                key_next = bool(inside) and inside[-1][1]
                name = name if key_next or not inside else f"{inside[-1][0]}[]"
            elif token == ":":
                key_next = False
            elif token[0] != '"':
                self._leave(token.strip(), name, "a number")
            elif key_next:
                key = json.loads(token)
                self._leave(key, inside[-1][0], "a key")
                name = f"{inside[-1][0]}.{key}" if inside[-1][0] else key
            else:
                text = json.loads(token)
                new = self.text(text, name)
                token = token if new is text else _literal(new, token.isascii())
            out.append(token)
        return "".join(out)

    def row(self, raw: str) -> str:
        """The JSON text of one row."""
        new = self.json(raw)
        self.count(new != raw)
        return new

    def count(self, changed: bool) -> None:
        self.rows += 1
        self.changed += changed

    def _leave(self, text: str, where: str, what: str) -> None:
        if len(text) > 6 and TELLING.search(text):
            for kind, _, _ in self.find(text):
                self.left[f"{what} of '{where}'" if where else what, kind] += 1


def _literal(text: str, ascii_only: bool) -> str:
    """Half a surrogate pair stays the escape that it was: UTF-8 has none."""
    return json.dumps(text, ensure_ascii=ascii_only).encode(errors="backslashreplace").decode()


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


# ---------------------------------------------------------------- files


def redact_file(source: str, out: str, redactor: Redactor) -> None:
    """Write `source` to `out`, whole or not at all; the redactor has counted. A .jsonl file is never held in memory."""
    path = Path(source).expanduser()
    if path.suffix.lower() not in FILE_KINDS or not path.is_file():
        raise UserError(f"--in {source}: expected a {', '.join(FILE_KINDS)} file that is there")
    if Path(out).suffix.lower() != path.suffix.lower() or Path(out).is_dir():
        raise UserError(f"--out {out}: expected the name of a {path.suffix.lower()} file, as --in is one")
    if path.suffix.lower() == ".parquet":
        with whole_file(out) as file:
            _parquet(path, file, redactor)
        return
    rewrite = {".jsonl": _lines, ".json": _list, ".csv": _cells}[path.suffix.lower()]
    with whole_file(out) as file:
        for text in rewrite(path, redactor):
            file.write(text.encode())


def _lines(path: Path, redactor: Redactor) -> Iterator[str]:
    with reading(path), open(path, encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            mark = BOM if number == 1 and line.startswith(BOM) else ""
            line = line.removeprefix(mark)
            if line.strip():
                parse_json(line, f"{path}, line {number}")
                line = redactor.row(line)
            yield mark + line


def _list(path: Path, redactor: Redactor) -> Iterator[str]:
    """A list of rows, row by row."""
    with reading(path):
        text = path.read_bytes().decode()
    mark = BOM if text.startswith(BOM) else ""
    text = text.removeprefix(mark)
    if not text.lstrip().startswith("["):
        yield from _lines(path, redactor)  # one object per line in a file called .json
        return
    parse_json(text, str(path))
    place, decoder = text.index("[") + 1, json.JSONDecoder()
    yield mark + text[:place]
    while text[(start := _behind(text, place))] != "]":
        if text[start] == ",":
            start = _behind(text, start + 1)
        end = decoder.raw_decode(text, start)[1]
        yield text[place:start] + redactor.row(text[start:end])
        place = end
    yield text[place:]


def _behind(text: str, place: int) -> int:
    """The first character at or behind `place` that is no white space."""
    return next(i for i in itertools.count(place) if text[i] not in " \t\r\n")


def _cells(path: Path, redactor: Redactor) -> Iterator[str]:
    rows = sum(1 for _ in rows_of(path))  # says what is wrong with it
    with reading(path):
        text = path.read_bytes().decode()
    mark = BOM if text.startswith(BOM) else ""
    text = text.removeprefix(mark)
    header = next(csv.reader(io.StringIO(text, newline="")), [])
    column, line, changed = 0, 0, set()
    for token in CELL.findall(text):
        if token == ",":
            column += 1
        elif token[0] in "\r\n":
            column, line = 0, line + 1
        elif line > 0:
            quoted = token[0] == '"'
            cell = token[1:-1].replace('""', '"') if quoted else token
            new = redactor.text(cell, header[column])
            if new is not cell:
                changed.add(line)
                token = '"' + new.replace('"', '""') + '"' if quoted or "," in new else new
        yield mark + token
        mark = ""
    redactor.rows += rows
    redactor.changed += len(changed)


def _parquet(path: Path, file: BinaryIO, redactor: Redactor) -> None:
    """Batch by batch, with the same schema."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile, ParquetWriter

    for _ in rows_of(path):  # says what is wrong with it
        break
    with ParquetFile(path) as source, ParquetWriter(file, source.schema_arrow) as target:
        for batch in source.iter_batches(batch_size=1000):
            columns, changed = [], [False] * len(batch)
            for column, about in zip(batch.columns, batch.schema, strict=True):
                values = column.to_pylist()
                new = [redactor.value(value, about.name) for value in values]
                touched = [a is not b for a, b in zip(values, new, strict=True)]
                changed = [a or b for a, b in zip(changed, touched, strict=True)]
                columns.append(pa.array(new, type=column.type) if any(touched) else column)
            target.write_batch(pa.record_batch(columns, schema=batch.schema))
            for row in changed:
                redactor.count(row)
