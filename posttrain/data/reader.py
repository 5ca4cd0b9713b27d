"""A raw row -> a canonical row; what cannot be read is told with its source and number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.data.formats import BadRow, recognise
from posttrain.errors import UserError

MOST_LEFT_OUT = 0.05  # share of the rows; above it the data is refused
LOOK = 100  # rows among which the first with filled columns shows the format
Place = tuple[str, int]  # (source, row number from 1)


@dataclass(frozen=True)
class Rows:
    rows: list[dict]
    places: list[Place]
    read: list[str]  # "400 rows as ShareGPT conversations from chats.json", one per source
    bad: list[str]  # "pairs.jsonl, row 87: 'chosen' is empty …": rows that no loop can use, left out

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return where(self.places[index])


def where(place: Place) -> str:
    return "{}, row {}".format(*place)


class Reader:
    """Raw row -> canonical row, for one source. BadRow: data.bad_rows says what becomes of it; UserError: the whole set
    is refused."""

    def __init__(self, first: list, method: str, source: str, system_prompt: str | None):
        """first: the first rows; the format is that of the first whose columns are not empty."""
        self.method, self.system_prompt = method, system_prompt
        problems = []
        for number, row in enumerate(first, start=1):
            _refuse_other_than_columns(row, (source, number))
            try:
                self.convert, self.format = recognise(row, method, source)
                return
            except UserError as problem:
                problems.append(problem)
        raise problems[0]

    def __call__(self, row: dict, place: Place) -> dict:
        _refuse_other_than_columns(row, place)
        if row.get("tools") and self.method not in ("grpo", "ppo"):
            raise UserError(
                f"{where(place)}: the column 'tools' is not supported: nothing would show the tools to the model"
            )
        try:
            canonical = self.convert(row)
        except KeyError as missing:
            raise BadRow(f"column {missing} is missing; found {', '.join(map(str, row))}") from None
        own = next(
            (row[c] for c in ("system", "system_prompt") if isinstance(row.get(c), str) and row[c].strip()), None
        )
        return _with_system(canonical, own or self.system_prompt)


def _with_system(row: dict, system: str | None) -> dict:
    """Put before a conversation that has no system message of its own: the row's system column, else
    data.system_prompt."""
    for key in ("messages", "prompt"):
        if system and key in row and row[key][0]["role"] != "system":
            row[key] = [{"role": "system", "content": system}, *row[key]]
            row |= {"learn_from": row["learn_from"] + 1} if "learn_from" in row else {}
    return row


def _refuse_other_than_columns(row: object, place: Place) -> None:
    if not isinstance(row, dict):
        raise UserError(f"{where(place)}: expected an object with named columns, found {type(row).__name__}")


def refuse_bad(problem: BadRow, place: Place, data: Any, method: str) -> str:
    """With data.bad_rows: error the first bad row stops the run; else the line that tells of it."""
    line = f"{where(place)}: {problem}"
    if data.bad_rows == "error":
        loop = {"outcome": "reward"}.get(method, method)
        raise UserError(
            f"{line}. Mend it, set data.bad_rows: drop, or clean the file: python -m posttrain.curate clean … --for {loop}"
        )
    return line


def refuse_too_many_bad(bad: list[str], total: int) -> None:
    if len(bad) > MOST_LEFT_OUT * total:
        more = f" ({len(bad)} such rows of {total}; up to {MOST_LEFT_OUT:.0%} would be left out and counted)"
        raise UserError(f"{bad[0]}{more if total > 1 else ''}")
