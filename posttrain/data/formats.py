"""What a row means: the formats people have -> canonical rows. Which one it is shows in the columns of the first row.

SFT     {messages}                        conversations                         -> {messages}
        {prompt, completion}              strings or messages                   -> {messages, learn_from}
        {instruction, input?, output}     Alpaca                                -> {messages}
        {conversations: [{from, value}]}  ShareGPT                              -> {messages}
        {question, answer}                GSM8K as shipped                      -> {messages}
        {text}                            plain text, trained whole             -> {text}
DPO     {prompt, chosen, rejected}        strings or messages                   -> {prompt, chosen, rejected}
        {instruction, input?, chosen, …}  Alpaca
        {chosen, rejected}                two whole conversations: messages, or "\\n\\nHuman: … \\n\\nAssistant: …" (HH)
        {conversations, chosen, rejected} ShareGPT
distill as SFT; with distill.on_policy: 1 also as RL
reward  as DPO; with loss: outcome as KTO
KTO     {prompt, completion, label}       strings or messages; label true/false or 1/0   -> {prompt, completion, label}
        {messages, label}                 the last assistant turn is judged
RL      {prompt | question, …}            strings or messages                   -> {prompt, asked, columns}

In canonical rows `prompt` and `messages` are lists of messages (messages.py); `chosen`, `rejected` and `completion` are
strings, or a message where an answer is more than its text (tool calls, thoughts). A string prompt is the user's
message of a one-turn chat. `asked` is the prompt as the data had it: reward functions get that form. `shown`, where
there is something, is what the chat template is given besides: tools, template_kwargs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from posttrain.data.messages import BadRow, Messages, as_messages, from_hh, from_sharegpt, messages_of, string_of
from posttrain.errors import UserError


@dataclass(frozen=True)
class Format:
    columns: tuple[str, ...]  # that must be there
    name: str  # what the run's output calls it
    convert: Callable[[dict], dict]  # a raw row -> a canonical one
    more: tuple[str, ...] = ()  # columns that are read where they are there


def recognise(row: dict, method: str, source: str) -> Format:
    """The first format of the method whose columns the row has, filled."""
    filled = {name for name, value in row.items() if value is not None}
    of_method = {"sft": SFT, "distill": (*SFT, *PROMPTS), "outcome": OUTCOME, "dpo": PAIRS, "reward": PAIRS}
    formats = of_method.get(method, PROMPTS)
    for form in formats:
        if filled.issuperset(form.columns):
            return form
    wanted = [" + ".join(form.columns) for form in formats]
    found = ", ".join(f"{name}{'' if name in filled else ' (empty)'}" for name in row) or "none"
    raise UserError(f"{source}, row 1: expected the columns {', '.join(wanted[:-1])} or {wanted[-1]}; found {found}")


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
    before = []
    for turn in row.get("history") or []:  # LLaMA-Factory: [[question, answer], …]
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise BadRow(f"'history' must be a list of [question, answer], got {turn!r:.60}")
        before += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    last = {"role": "assistant", "content": _answer(row["output"], "output")}
    return {"messages": [*messages_of([*before, *_instruction(row)], "history"), last]}


def _from_sharegpt(row: dict) -> dict:
    return {"messages": _conversation(from_sharegpt(row["conversations"]), "conversations")}


def _from_question_answer(row: dict) -> dict:
    answer = _answer(row["answer"], "answer")
    if "####" in answer:  # GSM8K marks its arithmetic for a calculator tool, "48/2 = <<48/2=24>>24": not to be learned
        answer = re.sub(r"<<[^<>=\n]*=[^<>\n]*>>", "", answer)
    return {"messages": [*_as_prompt(row["question"]), {"role": "assistant", "content": answer}]}


def _from_text(row: dict) -> dict:
    if not string_of(row["text"], "'text'").strip():
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
    return _pair(_as_prompt(row[column]), chosen, rejected)


def _from_alpaca_pair(row: dict) -> dict:
    return _pair(_instruction(row), row["chosen"], row["rejected"])


def _from_sharegpt_pair(row: dict) -> dict:
    return _pair(_as_prompt(from_sharegpt(row["conversations"])), row["chosen"], row["rejected"])


def _from_pair_of_conversations(row: dict) -> dict:
    """Both sides whole: the prompt is all before the last answer, and must be the same."""
    sides = []
    for name in ("chosen", "rejected"):
        value = row[name]
        messages = messages_of(from_hh(value, name) if isinstance(value, str) else value, name)
        if messages[-1]["role"] != "assistant":
            raise BadRow(f"'{name}' does not end with an assistant message: there is no answer to compare")
        sides.append(messages)
    if sides[0][:-1] != sides[1][:-1]:
        raise BadRow("chosen and rejected differ before their last answer: two answers to one prompt are needed")
    return _pair(_as_prompt(sides[0][:-1]), *(side[-1] for side in sides))


def _pair(prompt: Messages, chosen: Any, rejected: Any) -> dict:
    chosen, rejected = _as_answer(chosen, "chosen"), _as_answer(rejected, "rejected")
    if chosen == rejected:
        raise BadRow("chosen and rejected are the same: no preference to learn")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _from_labelled(row: dict) -> dict:
    return {
        "prompt": _as_prompt(row["prompt"]),
        "completion": _as_answer(row["completion"], "completion"),
        **_label(row),
    }


def _from_labelled_conversation(row: dict) -> dict:
    messages = messages_of(row["messages"], "messages")
    if messages[-1]["role"] != "assistant":
        raise BadRow("'messages' does not end with an assistant message: there is no answer to judge")
    return {"prompt": messages[:-1], "completion": _as_answer(messages[-1], "messages"), **_label(row)}


def _label(row: dict) -> dict:
    label = row["label"]
    if isinstance(label, str) or label not in (0, 1):
        raise BadRow(f"'label' must be true or false (1 or 0), got {label!r:.40}")
    return {"label": float(label)}


# ---------------------------------------------------------------- RL


def _from_rl_prompt(row: dict, column: str) -> dict:
    columns = {name: value for name, value in row.items() if name != "prompt"}
    return {"prompt": _as_prompt(row[column]), "asked": row[column], "columns": columns}


# ---------------------------------------------------------------- the parts


def _instruction(row: dict) -> Messages:
    more = row.get("input")
    text = string_of(row["instruction"], "'instruction'") + (f"\n\n{string_of(more, repr('input'))}" if more else "")
    return _as_prompt(text)


def _as_prompt(value: Any) -> Messages:
    if isinstance(value, str):
        if not string_of(value, "'prompt'").strip():
            raise BadRow("the prompt is empty")
        if not value.startswith("\n\nHuman:"):
            return [{"role": "user", "content": value}]
        value = from_hh(value, "prompt")
        value = value[:-1] if not value[-1]["content"] else value  # "\n\nAssistant:" waits for the answer
    if value is None:
        raise BadRow("the prompt is empty")
    if not isinstance(value, list):
        raise BadRow(f"the prompt must be text or a list of messages, got {type(value).__name__}")
    messages = messages_of(value, "prompt")
    if messages[-1]["role"] not in ("user", "tool"):
        who = {"assistant": "an assistant", "system": "a system"}[messages[-1]["role"]]
        raise BadRow(f"the prompt ends with {who} message, not with the user's: what is to be answered?")
    return messages


def _as_answer(value: Any, name: str) -> str | dict:
    """A string, or the message itself where it holds more than text."""
    value = as_messages(value)
    if isinstance(value, list):
        if len(value) != 1 or not isinstance(value[0], dict) or value[0].get("role") != "assistant":
            raise BadRow(f"'{name}' must be a string, one assistant message, or a whole conversation")
        # checked as the answer to somebody: alone it would be out of order
        value = messages_of([{"role": "user", "content": "…"}, value[0]], name)[-1]
    if isinstance(value, dict):
        message = {key: item for key, item in value.items() if key != "train"}
        return message if message.keys() - {"role", "content"} else _answer(message["content"], name)
    return _answer(value, name)


def _answer(value: Any, name: str) -> str:
    if value is None or not string_of(value, f"'{name}'").strip():
        raise BadRow(f"'{name}' is empty: an empty answer teaches nothing")
    return string_of(value, f"'{name}'")


def _conversation(value: Any, name: str) -> Messages:
    messages = messages_of(value, name)
    if not any(m["role"] == "assistant" for m in messages):
        raise BadRow(f"'{name}' has no assistant message: nothing to learn from")
    return messages


# ---------------------------------------------------------------- which is which

SFT = (
    Format(("messages",), "conversations (messages)", _from_messages),
    Format(("prompt", "completion"), "prompt + completion", _from_prompt_completion),
    Format(("instruction", "output"), "instructions (Alpaca)", _from_alpaca, more=("input", "history")),
    Format(("conversations",), "ShareGPT conversations", _from_sharegpt),
    Format(("question", "answer"), "question + answer (GSM8K)", _from_question_answer),
    Format(("text",), "plain text, trained whole", _from_text),
)
OUTCOME = (
    Format(("prompt", "completion", "label"), "prompt + completion + label", _from_labelled),
    Format(("messages", "label"), "conversations + label", _from_labelled_conversation),
)
PAIRS = (
    Format(("prompt", "chosen", "rejected"), "prompt + chosen + rejected", lambda row: _from_pair(row, "prompt")),
    Format(
        ("conversations", "chosen", "rejected"), "ShareGPT conversations with chosen + rejected", _from_sharegpt_pair
    ),
    Format(("question", "chosen", "rejected"), "question + chosen + rejected", lambda row: _from_pair(row, "question")),
    Format(
        ("instruction", "chosen", "rejected"), "instructions with chosen + rejected", _from_alpaca_pair, more=("input",)
    ),
    Format(("chosen", "rejected"), "chosen + rejected conversations", _from_pair_of_conversations),
)
PROMPTS = (
    Format(("prompt",), "prompts", lambda row: _from_rl_prompt(row, "prompt")),
    Format(("question",), "questions", lambda row: _from_rl_prompt(row, "question")),
)
