"""What a thread makes while the last of it is used: rows that are read and encoded while the model trains."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Full, Queue
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T], most: int = 1) -> Iterator[T]:
    """The same items in the same order, at most `most` of them waiting. What making one raises is raised here, where it
    would have come; when nobody asks any more, the thread ends with the item it is at."""
    made: Queue[tuple[str, Any]] = Queue(most)
    unwanted = threading.Event()

    def put(kind: str, value: Any = None) -> bool:
        while not unwanted.is_set():
            try:
                made.put((kind, value), timeout=0.1)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end")
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        unwanted.set()
        thread.join(timeout=5)  # one that waits for a network is left to end by itself
