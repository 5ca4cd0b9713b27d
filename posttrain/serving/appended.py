"""A file of JSON lines that only grows, one line at a time, each on the disk before anybody is told that it is.

What a kill or a power cut leaves of a line stands at its end, without a newline: nobody was told of that one. It is
moved to <file>.torn when the file is opened next, so the file stays one that every reader of JSON lines can read.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from posttrain.data.files import reading
from posttrain.errors import UserError, writing
from posttrain.run.folder import lock_path

BEGINNING = b'{"prompt": '  # of every line that is written here


class Appended:
    def __init__(self, path: Path, is_ours: Callable[[Any], bool], what: str):
        """is_ours: of a line that was read. what: one writes here, in the plural ("votes").

        UserError: another process writes there, it holds something else, or it cannot be read. `rows` is what it
        held."""
        self.path, self.writes = path, threading.Lock()
        self.lock = FileLock(lock_path(path), thread_local=False)
        try:
            with writing(lock_path(path)):
                self.lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{path}: another server writes its {what} there: give this one a file of its own"
            ) from None
        try:
            with writing(path):
                self.rows = self._read(is_ours, what)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        lock_path(self.path).unlink(missing_ok=True)
        self.lock.release()

    def add(self, row: dict[str, Any]) -> None:
        """When it returns, the line is on the disk. OSError: it is not, and nothing of it stands in the file."""
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        assert line.startswith(BEGINNING)
        with self.writes:
            new = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                before = os.fstat(file).st_size
                try:
                    written = os.write(file, line)
                    if written < len(line):  # a disk that is nearly full takes a part; the next write says why
                        os.write(file, line[written:])
                    if os.fstat(file).st_size != before + len(line):
                        raise OSError(None, "only a part of the line could be written")
                    os.fsync(file)
                except OSError:
                    os.ftruncate(file, before)
                    raise
            finally:
                os.close(file)
            if new:
                _sync_folder(self.path)

    def _read(self, is_ours: Callable[[Any], bool], what: str) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with reading(self.path):
            data = self.path.read_bytes()
        whole, _, last = data.rpartition(b"\n")
        rows = []
        for number, line in enumerate(whole.split(b"\n"), start=1):
            if not line.strip():
                continue
            if (row := _parsed(line, is_ours)) is None:
                raise UserError(f"{self.path}, line {number}: none of the {what} of this page: name another file")
            rows.append(row)
        if not last:
            return rows
        if (row := _parsed(last, is_ours)) is not None:  # whole but for its newline: an editor's, mostly
            _append(self.path, b"\n")
            return [*rows, row]
        begun = last.strip(b"\0")[: len(BEGINNING)]  # zeros: what some file systems show after a power cut
        if not BEGINNING.startswith(begun):
            raise UserError(f"{self.path}, line {len(rows) + 1}: none of the {what} of this page: name another file")
        _append(self.path.with_name(self.path.name + ".torn"), last + b"\n")
        with open(self.path, "r+b") as file:
            file.truncate(len(data) - len(last))
            os.fsync(file.fileno())
        return rows


def _parsed(line: bytes, is_ours: Callable[[Any], bool]) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # not UTF-8, too
        return None
    return row if is_ours(row) else None


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path)


def _sync_folder(path: Path) -> None:
    """A new file's name is in its folder, which has to reach the disk as well."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
