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

        UserError: the file holds something else, or cannot be read. Nothing is changed before it is opened."""
        self.path, self.is_ours, self.what, self.writes = path, is_ours, what, threading.Lock()
        self.lock = FileLock(lock_path(path), thread_local=False)
        self._read()

    def open(self) -> list[dict[str, Any]]:
        """-> what it holds. UserError: another process writes there; as above."""
        try:
            with writing(lock_path(self.path)):
                self.lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.path}: another server writes its {self.what} there: give this one a file of its own"
            ) from None
        try:
            rows, last = self._read()
            with writing(self.path):
                self._mend(last)
        except BaseException:
            self.close()
            raise
        return rows

    def close(self) -> None:
        if self.lock.is_locked:
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
                    left = memoryview(line)
                    while left:  # a disk that is nearly full takes a part; the next write says why
                        left = left[os.write(file, left) :]
                    os.fsync(file)
                except OSError:
                    os.ftruncate(file, before)
                    raise
            finally:
                os.close(file)
            if new:
                _sync_folder(self.path)

    def _read(self) -> tuple[list[dict[str, Any]], bytes]:
        """The rows, and what stands behind the last newline."""
        if not self.path.exists():
            return [], b""
        with reading(self.path):
            data = self.path.read_bytes()
        whole, _, last = data.rpartition(b"\n")
        rows, number = [], 0
        for number, line in enumerate(whole.split(b"\n"), start=1):
            if line.strip():
                rows.append(self._row(line, number))
        if last and (row := self._parsed(last)) is not None:  # whole but for its newline: an editor's, mostly
            rows.append(row)
        elif last and not BEGINNING.startswith(_begun(last)):
            self._row(last, number + bool(whole))
        return rows, last

    def _mend(self, last: bytes) -> None:
        if last and self._parsed(last) is not None:
            _append(self.path, b"\n")
        elif last:
            _append(self.path.with_name(self.path.name + ".torn"), last + b"\n")
            with open(self.path, "r+b") as file:
                file.truncate(self.path.stat().st_size - len(last))
                os.fsync(file.fileno())

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        if (row := self._parsed(line)) is None:
            raise UserError(f"{self.path}, line {number}: none of the {self.what} of this page: name another file")
        return row

    def _parsed(self, line: bytes) -> dict[str, Any] | None:
        try:
            row = json.loads(line)
        except ValueError:  # not UTF-8, too
            return None
        return row if self.is_ours(row) else None


def _begun(last: bytes) -> bytes:
    """As much of it as the beginning of a line is long, without zeros: what some file systems show after a power
    cut."""
    return last.strip(b"\0")[: len(BEGINNING)]


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
