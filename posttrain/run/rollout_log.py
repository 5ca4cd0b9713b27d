"""rollouts.jsonl: sampled answers, one a line, with the columns that reward functions have logged of them (log_extra).
It is there only if one has. A run that is resumed goes on where its checkpoint left the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

NAME = "rollouts.jsonl"


def append(folder: Path, lines: list[dict]) -> None:
    with open(folder / NAME, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def length(folder: Path) -> int:
    """In bytes, of what has been written so far."""
    path = folder / NAME
    return path.stat().st_size if path.exists() else 0


def cut(folder: Path, to: int) -> None:
    """What was written after the checkpoint is written again."""
    if length(folder) > to:
        os.truncate(folder / NAME, to)
