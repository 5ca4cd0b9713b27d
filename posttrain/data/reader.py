"""A raw row -> a canonical row; what cannot be read is told with its source and number."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.data.formats import NothingToLearn, recognise
from posttrain.errors import UserError

MOST_SKIPPED = 0.05  # share of rows that may be left out and counted; above it the data is refused
LOOK = 100  # rows among which the first with filled columns shows the format
Place = tuple[str, int]  # (source, row number from 1)


@dataclass(frozen=True)
class Rows:
    rows: list[dict]
    places: list[Place]
    read: list[str]  # "400 rows as ShareGPT conversations from chats.json", one per source
    skipped: list[str]  # "pairs.jsonl, row 87: 'chosen' is empty …": rows that teach nothing, left out

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return where(self.places[index])


def where(place: Place) -> str:
    return "{}, row {}".format(*place)


class Reader:
    """Raw row -> canonical row, for one source. NothingToLearn passes through, everything else is told with its row."""

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
        try:
            if row.get("tools") and self.method not in ("grpo", "ppo"):
                raise ValueError("the column 'tools' is not supported: nothing here would show the tools to the model")
            canonical = self.convert(row)
        except NothingToLearn:
            raise
        except KeyError as missing:
            found = ", ".join(map(str, row))
            raise UserError(f"{where(place)}: column {missing} is missing; found {found}") from None
        except ValueError as problem:
            advice = f"mend it, or leave such rows out with python -m posttrain.curate clean … --for {self.method}"
            raise UserError(f"{where(place)}: {problem} ({advice})") from None
        own = next(
            (row[c] for c in ("system", "system_prompt") if isinstance(row.get(c), str) and row[c].strip()), None
        )
        return _with_system(canonical, own or self.system_prompt)


def _with_system(row: dict, system: str | None) -> dict:
    """Put before a conversation that has no system message of its own: the row's system column, else data.system_prompt."""
    for key in ("messages", "prompt"):
        if system and key in row and row[key][0]["role"] != "system":
            row[key] = [{"role": "system", "content": system}, *row[key]]
            row |= {"learn_from": row["learn_from"] + 1} if "learn_from" in row else {}
    return row


def _refuse_other_than_columns(row: object, place: Place) -> None:
    if not isinstance(row, dict):
        raise UserError(f"{where(place)}: expected an object with named columns, found {type(row).__name__}")


def refuse_too_many_skipped(skipped: list[str], total: int) -> None:
    if len(skipped) > MOST_SKIPPED * total:
        more = f" ({len(skipped)} such rows of {total}; up to {MOST_SKIPPED:.0%} would be left out and counted)"
        raise UserError(f"{skipped[0]}{more if total > 1 else ''}")
