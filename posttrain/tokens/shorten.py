"""Rows that are too long: what to say of them, and how they are shortened with data.overlong: truncate_prompt.

A row that does not fit becomes the same row with less to read before what is learned. Whole oldest turns go first, then
the beginning of the first question that is left. The system message stays, and the template writes the rest as a
conversation that somebody could have had. What is learned is never touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any


def shortened(row: dict, learned_from: int, fits: Callable[[dict], bool]) -> dict | None:
    """row: a canonical row with `messages` or `prompt`; learned_from: its first message that is not to be touched. None
    where nothing that is left out makes it fit."""
    key = "messages" if "messages" in row else "prompt"
    while (fewer := _without_the_oldest_turn(row, key, learned_from)) is not None:
        learned_from -= len(row[key]) - len(fewer[key])
        row = fewer
        if fits(row):
            return row
    return _with_a_shorter_question(row, key, fits)


def _without_the_oldest_turn(row: dict, key: str, learned_from: int) -> dict | None:
    messages = row[key]
    questions = [i for i, m in enumerate(messages) if m["role"] == "user"]
    if len(questions) < 2 or questions[1] >= learned_from:
        return None
    start, end = questions[:2]
    fewer = row | {key: [*messages[:start], *messages[end:]]}
    if "learn_from" in row:
        fewer["learn_from"] = row["learn_from"] - (end - start)
    return fewer


def _with_a_shorter_question(row: dict, key: str, fits: Callable[[dict], bool]) -> dict | None:
    """The first question without its beginning, cut between words where there are words: as little as is enough."""
    messages = row[key]
    at = next((i for i, m in enumerate(messages) if m["role"] == "user"), None)
    if at is None:
        return None
    question = messages[at]["content"]

    def cut(start: int) -> dict:
        return row | {key: [*messages[:at], messages[at] | {"content": question[start:]}, *messages[at + 1 :]]}

    for starts in (
        [m.end() for m in re.finditer(r"\s+", question) if m.end() < len(question)],
        range(1, len(question)),
    ):
        if not starts or not fits(cut(starts[-1])):
            continue
        low, high = 0, len(starts) - 1  # starts[high] fits
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(cut(starts[middle])) else (middle + 1, high)
        return cut(starts[high])
    return None


# ---------------------------------------------------------------- what to say


def too_long(max_length: int, data: Any) -> tuple[str, str]:
    """(what such a row is, what would make room for it). data: config.data"""
    return f"longer than data.max_length = {max_length} tokens", _more_room(max_length, data)


def too_long_to_answer(max_length: int, max_new_tokens: int, data: Any, method: str) -> tuple[str, str]:
    """The same of a prompt, behind which an answer must fit."""
    what = (
        f"longer than {max_length - max_new_tokens} tokens (data.max_length {max_length} − {max_new_tokens} new ones)"
    )
    if method == "best-of-k":
        return what, "lower --max-new-tokens"
    return what, f"lower {method}.max_new_tokens, or {_more_room(max_length, data)}"


def _more_room(max_length: int, data: Any) -> str:
    """data.max_length is, where it is not set, 1024 or what the model can read."""
    if data.max_length is None and max_length < 1024:
        return "shorten them (the model reads no more)"
    return "raise data.max_length (as far as the model reads)"
