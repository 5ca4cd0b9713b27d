"""What a run has asked and heard so far, line by line in a file beside its --out: nothing is asked twice.

{"settings": {…}}                    the first line: how it was asked
{"key": …, "text": …, "problem": …}  one answer; problem: why it is of no use, null where it is
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from posttrain.errors import UserError, writing
from posttrain.rollouts.speaking import Said


class Asked:
    """OUT.asked.jsonl, open until close(). said: the answer to each key."""

    def __init__(self, out: str, settings: dict[str, Any]):
        """Goes on with the file that is there, if it was made with the same settings."""
        self.path = Path(out).with_suffix(".asked.jsonl")
        self.said: dict[str, Said] = {}
        self.lock = threading.Lock()
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "a+b")  # noqa: SIM115
            self.file.seek(0)
            before = self.file.read()
            whole = before[: before.rfind(b"\n") + 1]
            if before:
                self._read(whole, settings)
                self.file.truncate(len(whole) if self.said else 0)  # half a line: it was killed while it wrote
            if not self.said:  # nothing was heard: the settings may be others
                self._write({"settings": settings})

    def _read(self, whole: bytes, settings: dict[str, Any]) -> None:
        try:
            first, *lines = [json.loads(line) for line in whole.decode().splitlines()]
            old = dict(first["settings"])
            self.said = {line["key"]: Said(line["text"], line["problem"]) for line in lines}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.path}: not written by this command: remove it, or name another --out") from None
        changed = [name for name in {**old, **settings} if settings.get(name) != old.get(name)]
        if self.said and changed:
            then, now = (json.dumps(of.get(changed[0])) for of in (old, settings))
            raise UserError(
                f"{self.path} was made with {changed[0]} = {then}, not {now}: give the same as before, or another --out"
            )

    def add(self, key: str, said: Said) -> None:
        """From any thread."""
        with self.lock, writing(self.path):
            self._write({"key": key, "text": said.text, "problem": said.problem})
            self.said[key] = said

    def _write(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line).encode() + b"\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()
