"""What people have -> canonical rows. Where it comes from (a file, the hub, the embedded sets) does not matter.

    for SFT      {messages}                   also read: prompt + completion, question + answer (GSM8K), text (trained whole)
    for DPO      {prompt, chosen, rejected}   prompt: a string or messages; the answers: strings or one assistant message each
    for GRPO     {prompt, …}                  also read: question; every other column is handed to the reward function

A string prompt is the user's message of a one-turn chat. `rows` given from Python go through the same door.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import UserError

MOST_SKIPPED = (
    0.05  # share of rows that teach nothing; above it the data is refused, below it they are left out and counted
)
FILE_KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Rows:
    rows: list[dict]
    numbers: list[int]  # of each row in its source, from 1
    source: str  # file or data set name, for messages
    recognised_as: str
    skipped: list[str]  # "row 87: 'chosen' is empty …": rows that teach nothing, left out

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return f"{self.source}, row {self.numbers[index]}"


def load_rows(data, method: str, rows: list[dict] | None = None) -> Rows:
    """The canonical rows for "sft", "dpo" or "grpo", from `rows` or from config.data. Every problem names its row."""
    if rows is not None:
        raw, source = list(rows), "rows"
    elif data.name is None:
        raise UserError("data.name is missing: give a file, a data set, or rows=[…] from Python")
    else:
        raw, source = read(data.name, data.split), data.name
    if data.max_samples is not None:
        raw = raw[: data.max_samples]
    if not raw:
        raise UserError(f"{source}: no rows")
    for number, row in enumerate(raw, start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{source}, row {number}: expected an object with named columns, found {type(row).__name__}"
            )
    convert, recognised_as = recognise(raw[0], method, source)
    out, numbers, skipped = [], [], []
    for index, row in enumerate(raw):
        try:
            row = convert(row)
        except NothingToLearn as problem:
            skipped.append(f"row {index + 1}: {problem}")
            continue
        except KeyError as missing:
            raise UserError(
                f"{source}, row {index + 1}: column {missing} is missing; found {', '.join(map(str, row))}"
            ) from None
        except ValueError as problem:
            raise UserError(f"{source}, row {index + 1}: {problem}") from None
        for key in ("messages", "prompt"):
            if data.system_prompt and key in row and row[key][0]["role"] != "system":
                row[key] = [{"role": "system", "content": data.system_prompt}, *row[key]]
        out.append(row)
        numbers.append(index + 1)
    if len(skipped) > MOST_SKIPPED * len(raw):
        more = (
            f" ({len(skipped)} such rows of {len(raw)}; up to {MOST_SKIPPED:.0%} would be left out and counted)"
            if len(raw) > 1
            else ""
        )
        raise UserError(f"{source}, {skipped[0]}{more}")
    return Rows(out, numbers, source, recognised_as, skipped)


class NothingToLearn(ValueError):
    """A row that is well formed but teaches nothing: an empty answer, chosen == rejected."""


# ---------------------------------------------------------------- where from


def read(name: str, split: str) -> list[dict]:
    from posttrain import tiny_data

    if name in tiny_data.DATASETS:
        if split not in ("train", "test"):
            raise UserError(f"data.split: {name} has the splits train and test, got '{split}'")
        return tiny_data.rows(name, split)
    path = Path(name).expanduser()
    if path.suffix in FILE_KINDS or path.exists():
        if split != "train":
            raise UserError(f"data.split: a file has no split '{split}'; leave it out, or name another file")
        return read_file(path)
    return read_hub(name, split)


def read_file(path: Path) -> list[dict]:
    if not path.is_file():
        raise UserError(f"{path}: no such data file")
    if path.suffix == ".jsonl":
        lines = enumerate(_text(path).split("\n"), start=1)  # not splitlines(): JSON text may hold U+2028
        rows = [_json(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    elif path.suffix == ".json":
        rows = _json(_text(path), str(path))
        if not isinstance(rows, list):
            raise UserError(
                f"{path}: expected a list of rows, found one {type(rows).__name__}; one row per line belongs in a .jsonl file"
            )
    elif path.suffix in FILE_KINDS:
        from datasets import load_dataset

        try:
            rows = load_dataset(FILE_KINDS[path.suffix], data_files=str(path), split="train").to_list()
        except Exception as error:
            raise UserError(f"{path}: cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0]}") from None
    else:
        raise UserError(f"{path}: expected a {', '.join(FILE_KINDS)} file")
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}; convert the file") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text.strip() else ""
        raise UserError(f"{where}{line}: not valid JSON: {error.msg} at column {error.colno}") from None


def read_hub(name: str, split: str) -> list[dict]:
    from datasets import load_dataset

    try:
        return load_dataset(name, split=split).to_list()
    except Exception as error:
        raise UserError(
            f"data.name '{name}': no such file, not an embedded set (tiny-sft, tiny-identity, tiny-math), and the hub says: "
            f"{str(error).splitlines()[0]}"
        ) from None


# ---------------------------------------------------------------- what it looks like


def recognise(row: dict, method: str, source: str):
    """-> (function from a raw row to a canonical one, what the run's output calls the format)"""
    has = set(row).issuperset
    if method == "sft":
        if has(["messages"]):
            return _from_messages, "conversations (messages)"
        if has(["prompt", "completion"]):
            return _from_prompt_completion, "prompt + completion"
        if has(["question", "answer"]):
            return _from_question_answer, "question + answer (GSM8K)"
        if has(["text"]):
            return _from_text, "plain text, trained whole"
        wanted = "messages, prompt + completion, question + answer, or text"
    elif method == "dpo":
        if has(["prompt", "chosen", "rejected"]):
            return _from_pair, "prompt + chosen + rejected"
        wanted = "prompt, chosen and rejected"
    else:
        if has(["prompt"]):
            return lambda r: _from_rl_prompt(r, "prompt"), "prompts"
        if has(["question"]):
            return lambda r: _from_rl_prompt(r, "question"), "questions"
        wanted = "prompt or question"
    raise UserError(f"{source}, row 1: expected the columns {wanted}; found {', '.join(map(str, row)) or 'none'}")


def _from_messages(row: dict) -> dict:
    return {"messages": _messages(row["messages"], "messages", needs_reply=True)}


def _from_prompt_completion(row: dict) -> dict:
    return {"messages": [*_as_prompt(row["prompt"]), _as_reply(row["completion"], "completion")]}


def _from_question_answer(row: dict) -> dict:
    # GSM8K marks its arithmetic for a calculator tool, "48/2 = <<48/2=24>>24": not something to learn to write
    return {
        "messages": [
            *_as_prompt(row["question"]),
            _as_reply(re.sub(r"<<.*?>>", "", _string(row["answer"], "answer")), "answer"),
        ]
    }


def _from_text(row: dict) -> dict:
    if not _string(row["text"], "text").strip():
        raise NothingToLearn("'text' is empty")
    return {"text": row["text"]}


def _from_pair(row: dict) -> dict:
    chosen, rejected = _as_reply(row["chosen"], "chosen"), _as_reply(row["rejected"], "rejected")
    if chosen == rejected:
        raise NothingToLearn("chosen and rejected are the same: no preference to learn")
    return {"prompt": _as_prompt(row["prompt"]), "chosen": chosen["content"], "rejected": rejected["content"]}


def _from_rl_prompt(row: dict, column: str) -> dict:
    return {k: v for k, v in row.items() if k != column} | {"prompt": _as_prompt(row[column])}


def _as_prompt(value: Any) -> list[dict[str, str]]:
    if isinstance(value, str):
        if not value.strip():
            raise NothingToLearn("the prompt is empty")
        return [{"role": "user", "content": value}]
    messages = _messages(value, "prompt", needs_reply=False)
    if messages[-1]["role"] == "assistant":
        raise ValueError("the prompt ends with an assistant message: the answer must be a column of its own")
    return messages


def _as_reply(value: Any, name: str) -> dict[str, str]:
    if isinstance(value, list):
        if len(value) != 1 or not isinstance(value[0], dict) or value[0].get("role") != "assistant":
            raise ValueError(f"'{name}' must be a string or a list of one assistant message")
        value = value[0].get("content")
    if not _string(value, name).strip():
        raise NothingToLearn(f"'{name}' is empty: an empty answer teaches nothing")
    return {"role": "assistant", "content": value}


def _messages(value: Any, name: str, *, needs_reply: bool) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"'{name}' must be a list of messages {{role, content}}, got {type(value).__name__}")
    out = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(
                f"'{name}', message {number}: expected {{role: system | user | assistant, content: text}}, got {message!r:.80}"
            )
        _string(message.get("content"), f"{name}, message {number}: content")
        if message["role"] == "assistant" and not message["content"].strip():
            raise NothingToLearn(f"'{name}', message {number}: an empty assistant turn teaches nothing")
        out.append({"role": message["role"], "content": message["content"]})
    if next((m["role"] for m in out if m["role"] != "system"), "user") != "user":
        raise ValueError(f"'{name}' begins with an assistant message: there is no prompt that it answers")
    if needs_reply and not any(m["role"] == "assistant" for m in out):
        raise ValueError(f"'{name}' has no assistant message: nothing to learn from")
    return out


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"'{name}' must be text, got {type(value).__name__}")
    return value
