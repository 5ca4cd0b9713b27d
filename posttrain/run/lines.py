"""metrics.jsonl, one line for every optimiser step, and rollouts.jsonl, one for every sampled answer of which a reward
function has logged something (log_extra; else the file is not there).

A full disk must not end a run over them: such lines are kept, and written when there is room again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from posttrain.errors import disk_reason

METRICS, ROLLOUTS = "metrics.jsonl", "rollouts.jsonl"


class Lines:
    """A file that grows by whole lines."""

    def __init__(self, path: Path, say: Callable[[str], None]):
        self.path, self.say = path, say
        self.kept: list[str] = []  # what a full disk has not taken yet

    def add(self, lines: Iterable[str] = ()) -> None:
        """lines: JSON, without the newline."""
        told = bool(self.kept)
        self.kept += lines
        if not self.kept:
            return
        try:
            _append(self.path, "".join(line + "\n" for line in self.kept).encode(errors="backslashreplace"))
            self.kept = []
        except OSError as problem:
            if not told:
                self.say(
                    f"warning: {self.path} cannot be written ({disk_reason(problem)}): the run goes on, and writes its lines "
                    "when it can. Make room"
                )

    def length(self) -> int:
        """In bytes, of what has been written so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, to: int) -> None:
        """A run that is resumed: what was written after the checkpoint is written again."""
        if self.length() > to:
            os.truncate(self.path, to)


def _append(path: Path, text: bytes) -> None:
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            while text:  # a disk takes what still fits, and says so only the next time
                text = text[file.write(text) or 0 :]
        except OSError:
            file.truncate(before)  # no half of a line
            raise
