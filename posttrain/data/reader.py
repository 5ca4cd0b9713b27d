"""A raw row -> a canonical row; what cannot be read is told with its source and number."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from posttrain.data.formats import recognise
from posttrain.data.messages import BadRow, filled, from_json, tools_of
from posttrain.errors import UserError

MOST_LEFT_OUT = 0.05  # share of the rows; above it the data is refused
LOOK = 100  # rows among which the first with filled columns shows the format
EVERYWHERE = ("system", "system_prompt", "tools", "chat_template_kwargs")  # columns that rows of any format may have
NOT_TEXT = ("images", "image", "videos", "video", "audios", "audio")
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

    def __init__(self, first: list, method: str, source: str, data: Any):
        """first: the first rows; the format is that of the first whose columns are not empty. data: config.data."""
        self.method, self.data = method, data
        problems = []
        for number, row in enumerate(first, start=1):
            _refuse_other_than_columns(row, (source, number))
            try:
                self.form = recognise(self._without_ignored(row), method, source)
            except UserError as problem:
                problems.append(problem)
                continue
            self.format, self.unused = self.form.name, self._not_used(row)
            return
        raise problems[0]

    def __call__(self, row: dict, place: Place) -> dict:
        _refuse_other_than_columns(row, place)
        row = self._without_ignored(row)
        self._refuse_another_meaning(row)
        try:
            canonical = self.form.convert(row)
        except KeyError as missing:
            raise BadRow(f"column {missing} is missing; found {', '.join(map(str, row))}") from None
        own = next(
            (row[c] for c in ("system", "system_prompt") if isinstance(row.get(c), str) and row[c].strip()), None
        )
        return _with_system(canonical, own or self.data.system_prompt) | self._shown(row)

    def _shown(self, row: dict) -> dict:
        """What the chat template is given besides the messages."""
        own = from_json(row.get("chat_template_kwargs") or {})
        if not isinstance(own, dict):
            raise BadRow(f"'chat_template_kwargs' must be an object, got {own!r:.40}")
        shown = {"tools": tools_of(row.get("tools")), "template_kwargs": self.data.chat_template_kwargs | filled(own)}
        shown = {name: value for name, value in shown.items() if value}
        return {"shown": shown} if shown else {}

    def _without_ignored(self, row: dict) -> dict:
        """Without what data.ignore names: columns, and keys of messages."""
        ignored = self.data.ignore
        if not ignored:
            return row

        def kept(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: item for key, item in value.items() if key not in ignored}
            return [kept(item) for item in value] if isinstance(value, list) else value

        return {name: kept(value) for name, value in row.items() if name not in ignored}

    def _refuse_another_meaning(self, row: dict) -> None:
        """Columns that say of a row what no loop here would do with it."""
        for name in NOT_TEXT:
            if row.get(name):
                raise BadRow(
                    f"the column '{name}' is not supported: only text is trained on (data.ignore leaves it out)"
                )
        if row.get("functions"):
            raise BadRow("the column 'functions' is OpenAI's older one: write tools, and tool_calls in the messages")
        if self.method in ("sft", "distill") and "text" not in self.form.columns:
            for name in ("label", "kto_tag"):
                if row.get(name) in (False, 0) and row[name] is not None:
                    raise BadRow(
                        f"'{name}' is {row[name]}: a bad answer, which SFT would teach. Leave such rows out, or train on both "
                        "kinds with loops.kto, or with loops.reward and reward.loss: outcome"
                    )

    def _not_used(self, row: dict) -> str:
        if self.method in ("grpo", "ppo", "best-of-k"):  # reward functions get every column
            return ""
        used = {*self.form.columns, *self.form.more, *EVERYWHERE, *NOT_TEXT, "functions", "label", "kto_tag"}
        unused = [str(name) for name, value in row.items() if name not in used and value not in (None, "", [], {})]
        if not unused:
            return ""
        return f" (columns not used: {', '.join(unused[:6])}{', …' if len(unused) > 6 else ''})"


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
        what = {"best-of-k": "grpo"}.get(method, method)
        clean = f"python -m posttrain.curate clean {shlex.quote(place[0])} --for {what} --out clean.jsonl"
        advice = (
            "Mend it, or set data.bad_rows: drop"
            if place[0] == "rows"
            else f"Mend it, set data.bad_rows: drop, or run {clean}"
        )
        raise UserError(f"{line}. {advice}")
    return line


def refuse_too_many_bad(bad: list[str], total: int) -> None:
    if len(bad) > MOST_LEFT_OUT * total:
        more = f" ({len(bad)} such rows of {total}; up to {MOST_LEFT_OUT:.0%} would be left out and counted)"
        raise UserError(f"{bad[0]}{more if total > 1 else ''}")
