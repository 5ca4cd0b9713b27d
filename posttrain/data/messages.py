"""A list of messages as people have them -> messages as chat templates know them.

    role               system | user | assistant | tool
    content            text, or a list of text parts, which is joined
    reasoning_content  an assistant's thoughts (or thinking): the template's to show
    tool_calls         an assistant's: [{name, arguments}], alone or under function; arguments in JSON are read
    tool_call_id       of a tool's answer; name: of whoever speaks
    train              false on an assistant's turn that is context, not learned (or weight: 0, or loss_weight: 0)

ShareGPT's {from, value} becomes the same. Any other key is refused by its name, for it may change what the row means
(data.ignore leaves it out). Empty ones do not count: Arrow gives every row every key.
"""

from __future__ import annotations

import json
import re
from typing import Any

Messages = list[dict[str, Any]]
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
                  "model": "assistant", "system": "system", "function_call": "assistant", "observation": "tool",
                  "tool": "tool"}  # fmt: skip
KEPT = ("name", "tool_call_id", "reasoning_content", "thinking")  # text, handed to the template
ASSISTANTS = ("tool_calls", "reasoning_content", "thinking")
LEARNED = ("train", "weight", "loss_weight")


class BadRow(ValueError):
    """A row that no loop can use: roles out of order, an empty answer, chosen == rejected, a column that is missing."""


def messages_of(value: Any, name: str) -> Messages:
    """Checked: known roles and keys, text, an optional system message, then user and assistant in turn, the user first;
    a tool answers an assistant's call."""
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{name}' must be a list of messages {{role, content}}, got {type(value).__name__}")
    out: Messages = []
    for number, message in enumerate(value, start=1):
        where = f"'{name}', message {number}"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BadRow(f"{where}: expected {{role: {' | '.join(ROLES)}, content: text}}, got {message!r:.80}")
        checked = _message(message, where)
        _refuse_out_of_order(checked, out, where)
        out.append(checked)
    return out


def _message(message: dict, where: str) -> dict[str, Any]:
    role, given = message["role"], {key: value for key, value in message.items() if value not in (None, "", [], {})}
    unknown = [key for key in given if key not in ("role", "content", "tool_calls", *KEPT, *LEARNED)]
    if unknown:
        raise BadRow(
            f"{where}: the key '{unknown[0]}' is not known and may change what is meant: remove it, or leave it out with "
            f"data.ignore: [{', '.join(map(str, unknown))}]"
        )
    if role != "assistant" and (own := [key for key in ASSISTANTS if key in given]):
        raise BadRow(f"{where}: '{own[0]}' belongs to an assistant, not to a {role} message")
    calls = _calls(given["tool_calls"], where) if "tool_calls" in given else []
    content = message.get("content")
    out: dict[str, Any] = {
        "role": role,
        "content": string_of("" if content is None and calls else content, f"{where}: content"),
    }
    if role == "assistant" and not out["content"].strip() and not calls:
        raise BadRow(f"{where}: an empty assistant turn teaches nothing")
    out |= {"tool_calls": calls} if calls else {}
    out |= {key: string_of(given[key], f"{where}: {key}") for key in KEPT if key in given}
    return out if _is_learned(given, where) or role != "assistant" else out | {"train": False}


def _is_learned(given: dict, where: str) -> bool:
    for key in LEARNED:
        value = given.get(key)
        if value is None:
            continue
        if isinstance(value, str) or value not in (0, 1):
            raise BadRow(
                f"{where}: '{key}' must be 0 or 1 (false or true), got {value!r:.40}: a turn is learned or not"
            )
        if given["role"] != "assistant" and value and key != "weight":
            raise BadRow(f"{where}: '{key}' is {value!r}, but only an assistant's turns are learned")
        if not value:
            return False
    return True


def _refuse_out_of_order(message: dict, before: Messages, where: str) -> None:
    role, last = message["role"], before[-1]["role"] if before else None
    problem = None
    if role == "system" and before:
        problem = "a system message belongs at the beginning"
    elif role == "assistant" and last not in ("user", "tool"):
        problem = "an assistant message must answer a user's"
    elif role == "user" and last == "user":
        problem = "two user messages in a row, join them"
    elif role == "tool" and last != "tool" and not (before and before[-1].get("tool_calls")):
        problem = "a tool message must answer an assistant's tool call"
    if problem:
        raise BadRow(f"{where}: roles out of order: {problem}")


# ---------------------------------------------------------------- text and tools


def string_of(value: Any, what: str) -> str:
    """Text; a list of text parts ({type: text, text: …}, or {…, value: …}) is joined. what: as messages call it."""
    if isinstance(value, list) and value:
        parts = []
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            text = part.get("text", part.get("value")) if kind == "text" else part
            if not isinstance(text, str):
                found = f"a part of type {kind!r}" if kind else type(part).__name__
                raise BadRow(f"{what} holds {found}: only text can be trained on here")
            parts.append(text)
        value = "".join(parts)
    if not isinstance(value, str):
        raise BadRow(f"{what} must be text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(
            f"{what} holds half a character at position {error.start} (a lone surrogate): cut it off"
        ) from None
    return value


def _calls(value: Any, where: str) -> list[dict]:
    """[{type: function, function: {name, arguments: {…}}}], as templates want it."""
    value = from_json(value)
    out = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        arguments = from_json(function.get("arguments") or {}) if isinstance(function, dict) else None
        if (
            not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
            or not isinstance(arguments, dict)
        ):
            raise BadRow(f"{where}: a tool call must be {{name, arguments: {{…}}}}, got {call!r:.80}")
        made = {"type": "function", "function": {"name": function["name"], "arguments": filled(arguments)}}
        out.append(made | ({"id": call["id"]} if call.get("id") else {}))
    return out


def tools_of(value: Any) -> list[dict]:
    """The column `tools`: descriptions of functions, or the same in JSON; none is []."""
    read = from_json(value) if value else []
    if not isinstance(read, list) or not all(isinstance(tool, dict) for tool in read):
        raise BadRow(f"'tools' must be a list of function descriptions (or that in JSON), got {value!r:.60}")
    return [filled(tool) for tool in read]


def from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def filled(value: Any) -> Any:
    """Without the empty keys that Arrow adds: in a table, every row has every key of every other."""
    if isinstance(value, dict):
        return {key: filled(item) for key, item in value.items() if item is not None}
    return [filled(item) for item in value] if isinstance(value, list) else value


# ---------------------------------------------------------------- other ways to write messages


def as_messages(value: Any) -> Any:
    """One message alone, {from, value} or {role, content} -> a list of it; ShareGPT lists -> messages."""
    value = [value] if isinstance(value, dict) else value
    if isinstance(value, list) and value and isinstance(value[0], dict) and "from" in value[0]:
        return from_sharegpt(value)
    return value


def from_sharegpt(value: Any) -> list[dict]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"'conversations' must be a list of {{from, value}}, got {type(value).__name__}")
    out = []
    for number, turn in enumerate(value, start=1):
        if isinstance(turn, dict) and "role" in turn:  # some sets call the column so and write messages into it
            out.append(turn)
            continue
        if not isinstance(turn, dict) or str(turn.get("from")) not in SHAREGPT_ROLES:
            known = ", ".join(SHAREGPT_ROLES)
            raise BadRow(
                f"'conversations', turn {number}: expected {{from, value}} with from one of {known}, got {turn!r:.80}"
            )
        said = "tool_calls" if turn["from"] == "function_call" else "content"
        more = {key: item for key, item in turn.items() if key not in ("from", "value")}
        out.append({"role": SHAREGPT_ROLES[turn["from"]], said: turn.get("value"), **more})
    return out


def from_hh(text: Any, name: str) -> list[dict]:
    """ "\\n\\nHuman: Hi\\n\\nAssistant: Hello" -> messages."""
    before, *parts = re.split(r"\n\n(Human|Assistant):", string_of(text, f"'{name}'"))
    if before.strip() or not parts:
        raise BadRow(
            f"'{name}' without a prompt column must be a conversation, '\\n\\nHuman: … \\n\\nAssistant: …' or messages, got {text!r:.60}"
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    turns: list[dict] = []
    for who, said in zip(parts[::2], parts[1::2], strict=True):
        if turns and turns[-1]["role"] == roles[who]:  # the same speaker twice (2 of 1,000 real rows): one turn
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{said.strip()}".strip()
        else:
            turns.append({"role": roles[who], "content": said.strip()})
    return turns
