"""What a row means: the formats people have -> canonical rows. Which one it is shows in the columns of the first row.

SFT     {messages}                        conversations                         -> {messages}
        {prompt, completion}              strings or messages                   -> {messages, learn_from}
        {instruction, input?, output}     Alpaca                                -> {messages}
        {conversations: [{from, value}]}  ShareGPT                              -> {messages}
        {question, answer}                GSM8K as shipped                      -> {messages}
        {text}                            plain text, trained whole             -> {text}
DPO     {prompt, chosen, rejected}        strings or messages                   -> {prompt, chosen, rejected}
        {chosen, rejected}                two whole conversations: messages, or "\\n\\nHuman: … \\n\\nAssistant: …" (HH)
        {conversations, chosen, rejected} ShareGPT
reward  as DPO; with loss: outcome {prompt, completion, label}, label true/false or 1/0  -> {prompt, completion, label}
RL      {prompt | question, …}            strings or messages                   -> {prompt, asked, columns}

In canonical rows `prompt` and `messages` are lists of {role, content}; `chosen` and `rejected` are strings. A string
prompt is the user's message of a one-turn chat. `asked` is the prompt as the data had it: reward functions get that
form.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from posttrain.errors import UserError

Messages = list[dict[str, str]]
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
                  "model": "assistant", "system": "system"}  # fmt: skip


class BadRow(ValueError):
    """A row that no loop can use: roles out of order, an empty answer, chosen == rejected, a column that is missing."""


def recognise(row: dict, method: str, source: str) -> tuple[Callable[[dict], dict], str]:
    """-> (function from a raw row to a canonical one, what the run's output calls the format)"""
    filled = {name for name, value in row.items() if value is not None}
    has = filled.issuperset
    if method == "sft":
        wanted = "messages, prompt + completion, instruction + output, conversations, question + answer, or text"
        if has(["messages"]):
            return _from_messages, "conversations (messages)"
        if has(["prompt", "completion"]):
            return _from_prompt_completion, "prompt + completion"
        if has(["instruction", "output"]):
            return _from_alpaca, "instructions (Alpaca)"
        if has(["conversations"]):
            return _from_sharegpt, "ShareGPT conversations"
        if has(["question", "answer"]):
            return _from_question_answer, "question + answer (GSM8K)"
        if has(["text"]):
            return _from_text, "plain text, trained whole"
    elif method == "outcome":
        wanted = "prompt, completion and label"
        if has(["prompt", "completion", "label"]):
            return _from_labelled, "prompt + completion + label"
    elif method in ("dpo", "reward"):
        wanted = (
            "prompt + chosen + rejected, chosen + rejected (whole conversations), or conversations + chosen + rejected"
        )
        if has(["chosen", "rejected"]):
            if has(["prompt"]):
                return lambda r: _from_pair(r, "prompt"), "prompt + chosen + rejected"
            if has(["conversations"]):
                return _from_sharegpt_pair, "ShareGPT conversations with chosen + rejected"
            if has(["question"]):
                return lambda r: _from_pair(r, "question"), "question + chosen + rejected"
            if isinstance(row["chosen"], str):
                return _from_hh_pair, "chosen + rejected conversations (Anthropic HH)"
            return _from_pair_of_conversations, "chosen + rejected conversations"
    else:
        wanted = "prompt or question"
        if has(["prompt"]):
            return lambda r: _from_rl_prompt(r, "prompt"), "prompts"
        if has(["question"]):
            return lambda r: _from_rl_prompt(r, "question"), "questions"
    found = ", ".join(f"{name}{'' if name in filled else ' (empty)'}" for name in row) or "none"
    raise UserError(f"{source}, row 1: expected the columns {wanted}; found {found}")


# ---------------------------------------------------------------- SFT


def _from_messages(row: dict) -> dict:
    return {"messages": _conversation(row["messages"], "messages")}


def _from_prompt_completion(row: dict) -> dict:
    prompt, completion = _as_prompt(row["prompt"]), row["completion"]
    if isinstance(completion, list):
        whole = _conversation([*prompt, *completion], "completion")
    else:
        whole = [*prompt, {"role": "assistant", "content": _answer(completion, "completion")}]
    return {"messages": whole, "learn_from": len(prompt)}  # answers that stand in the prompt are not learned


def _from_alpaca(row: dict) -> dict:
    more = row.get("input")
    asked = _string(row["instruction"], "instruction") + (f"\n\n{_string(more, 'input')}" if more else "")
    before = []
    for turn in row.get("history") or []:  # LLaMA-Factory: [[question, answer], …]
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise BadRow(f"'history' must be a list of [question, answer], got {turn!r:.60}")
        before += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    last = {"role": "assistant", "content": _answer(row["output"], "output")}
    return {"messages": [*_messages([*before, *_as_prompt(asked)], "history"), last]}


def _from_sharegpt(row: dict) -> dict:
    return {"messages": _conversation(_sharegpt(row["conversations"]), "conversations")}


def _from_question_answer(row: dict) -> dict:
    answer = _answer(row["answer"], "answer")
    if "####" in answer:  # GSM8K marks its arithmetic for a calculator tool, "48/2 = <<48/2=24>>24": not to be learned
        answer = re.sub(r"<<[^<>=\n]*=[^<>\n]*>>", "", answer)
    return {"messages": [*_as_prompt(row["question"]), {"role": "assistant", "content": answer}]}


def _from_text(row: dict) -> dict:
    if not _string(row["text"], "text").strip():
        raise BadRow("'text' is empty")
    return {"text": row["text"]}


# ---------------------------------------------------------------- preferences


def _from_pair(row: dict, column: str) -> dict:
    chosen, rejected = as_messages(row["chosen"]), as_messages(row["rejected"])
    # whole conversations beside the prompt
    if any(isinstance(side, list) and len(side) > 1 for side in (chosen, rejected)):
        pair = _from_pair_of_conversations({"chosen": chosen, "rejected": rejected})
        given, prompt = _as_prompt(row[column]), [m for m in pair["prompt"] if m["role"] != "system"]
        if isinstance(row[column], str):  # UltraFeedback: the prompt is one of the user's messages
            fits = given[0]["content"].strip() in [m["content"].strip() for m in prompt]
        else:  # a list is the whole of it; it may bring the system message
            fits = [m for m in given if m["role"] != "system"] == prompt
            pair["prompt"] = given if fits else pair["prompt"]
        if not fits:
            raise BadRow(f"'{column}' is not what 'chosen' answers: {given[-1]['content']!r:.60}")
        return pair
    return _pair(_as_prompt(row[column]), _as_answer(chosen, "chosen"), _as_answer(rejected, "rejected"))


def _from_sharegpt_pair(row: dict) -> dict:
    prompt = _as_prompt(_sharegpt(row["conversations"]))
    return _pair(
        prompt, _as_answer(as_messages(row["chosen"]), "chosen"), _as_answer(as_messages(row["rejected"]), "rejected")
    )


def _from_hh_pair(row: dict) -> dict:
    return _from_pair_of_conversations({side: _hh_turns(row[side], side) for side in ("chosen", "rejected")})


def _from_pair_of_conversations(row: dict) -> dict:
    """Both sides whole: the prompt is all before the last answer, and must be the same."""
    sides = []
    for name in ("chosen", "rejected"):
        messages = _messages(row[name], name)
        if messages[-1]["role"] != "assistant":
            raise BadRow(f"'{name}' does not end with an assistant message: there is no answer to compare")
        sides.append(messages)
    if sides[0][:-1] != sides[1][:-1]:
        raise BadRow("chosen and rejected differ before their last answer: two answers to one prompt are needed")
    return _pair(_as_prompt(sides[0][:-1]), *(side[-1]["content"] for side in sides))


def _pair(prompt: Messages, chosen: str, rejected: str) -> dict:
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        _answer(text, name)
    if chosen == rejected:
        raise BadRow("chosen and rejected are the same: no preference to learn")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _hh_turns(text: Any, name: str) -> list[dict]:
    """ "\\n\\nHuman: Hi\\n\\nAssistant: Hello" -> messages."""
    before, *parts = re.split(r"\n\n(Human|Assistant):", _string(text, name))
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


def _from_labelled(row: dict) -> dict:
    label = row["label"]
    if isinstance(label, str) or label not in (0, 1):
        raise BadRow(f"'label' must be true or false (1 or 0), got {label!r:.40}")
    completion = _as_answer(as_messages(row["completion"]), "completion")
    return {"prompt": _as_prompt(row["prompt"]), "completion": completion, "label": float(label)}


# ---------------------------------------------------------------- RL


def _from_rl_prompt(row: dict, column: str) -> dict:
    columns = {name: value for name, value in row.items() if name != "prompt"}
    return {"prompt": _as_prompt(row[column]), "asked": row[column], "columns": columns}


# ---------------------------------------------------------------- the parts


def _as_prompt(value: Any) -> Messages:
    if isinstance(value, str):
        if not _string(value, "prompt").strip():
            raise BadRow("the prompt is empty")
        if not value.startswith("\n\nHuman:"):
            return [{"role": "user", "content": value}]
        value = _hh_turns(value, "prompt")
        value = value[:-1] if not value[-1]["content"] else value  # "\n\nAssistant:" waits for the answer
    if value is None:
        raise BadRow("the prompt is empty")
    messages = _messages(value, "prompt")
    if messages[-1]["role"] != "user":
        who = {"assistant": "an assistant", "system": "a system"}[messages[-1]["role"]]
        raise BadRow(f"the prompt ends with {who} message, not with the user's: what is to be answered?")
    return messages


def as_messages(value: Any) -> Any:
    """One message alone, {from, value} or {role, content} -> a list of it; ShareGPT lists -> messages."""
    value = [value] if isinstance(value, dict) else value
    if isinstance(value, list) and value and isinstance(value[0], dict) and "from" in value[0]:
        return _sharegpt(value)
    return value


def _as_answer(value: Any, name: str) -> str:
    if isinstance(value, list):
        if len(value) != 1 or not isinstance(value[0], dict) or value[0].get("role") != "assistant":
            raise BadRow(f"'{name}' must be a string, one assistant message, or a whole conversation")
        value = value[0].get("content")
    return _answer(value, name)


def _answer(value: Any, name: str) -> str:
    if value is None or not _string(value, name).strip():
        raise BadRow(f"'{name}' is empty: an empty answer teaches nothing")
    return value


def _conversation(value: Any, name: str) -> Messages:
    messages = _messages(value, name)
    if not any(m["role"] == "assistant" for m in messages):
        raise BadRow(f"'{name}' has no assistant message: nothing to learn from")
    return messages


def _messages(value: Any, name: str) -> Messages:
    """Checked: known roles, text, an optional system message, then user and assistant in turn, the user first."""
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{name}' must be a list of messages {{role, content}}, got {type(value).__name__}")
    out: Messages = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise BadRow(
                f"'{name}', message {number}: expected {{role: system | user | assistant, content: text}}, got {message!r:.80}"
            )
        if message.get("tool_calls"):
            raise BadRow(f"'{name}', message {number}: tool calls are not supported")
        role = message["role"]
        _string(message.get("content"), f"{name}, message {number}: content")
        if role == "assistant" and not message["content"].strip():
            raise BadRow(f"'{name}', message {number}: an empty assistant turn teaches nothing")
        before = out[-1]["role"] if out else None
        if role == "system" and out:
            raise BadRow(f"'{name}', message {number}: roles out of order: a system message belongs at the beginning")
        if role == "assistant" and before != "user":
            raise BadRow(f"'{name}', message {number}: roles out of order: an assistant message must answer a user's")
        if role == "user" and before == "user":
            raise BadRow(f"'{name}', message {number}: roles out of order: two user messages in a row, join them")
        out.append({"role": role, "content": message["content"]})
    return out


def _sharegpt(value: Any) -> list[dict]:
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
        out.append({"role": SHAREGPT_ROLES[turn["from"]], "content": turn.get("value")})
    return out


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"'{name}' must be text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(
            f"'{name}' holds half a character at position {error.start} (a lone surrogate): cut it off"
        ) from None
    return value
