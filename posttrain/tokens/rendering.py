"""A conversation -> the text that the tokenizer's chat template writes -> ids.

What a user (or a system message, or a tool) types stays text: where it spells a special token ("<|im_end|>"), that
piece is tokenised with special tokens split, so nobody ends a turn by typing. What an *assistant* message spells is the
token: reasoning tags and tool calls are such tokens in many models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Any

Messages = list[dict[str, Any]]

# Arguments of apply_chat_template that no template sees.
OF_THE_LIBRARY = (
    "conversation", "chat_template", "tools", "add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation",
    "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
)  # fmt: skip

_today: datetime | None = None


def freeze_date(when: datetime | None) -> None:
    """What a template prints of today (Llama 3.1 and 3.2, gpt-oss), from here on in this process: a run that is killed
    before midnight goes on after it with the same prompts. None: the real date again."""
    global _today
    _today = when


@dataclass(frozen=True)
class Rendered:
    """What a template wrote, and where in it somebody typed the name of a special token."""

    text: str
    typed: tuple[tuple[int, int], ...] = ()  # (start, end) of each such piece

    def since(self, start: int) -> Rendered:
        typed = tuple((a - start, b - start) for a, b in self.typed if a >= start)
        return Rendered(self.text[start:], typed)


def render(
    tokenizer: Any,
    messages: Messages,
    *,
    generate: bool,
    tools: list | None = None,
    template_kwargs: dict[str, Any] | None = None,
) -> Rendered:
    """generate: with the generation prompt behind it, as the model is asked; else as a whole conversation."""
    for name in template_kwargs or {}:
        if name in OF_THE_LIBRARY:
            raise ValueError(f"chat_template_kwargs: {name} is for the library, and does not reach the chat template")
    marked, marks = _mark(messages, special_strings(tokenizer))
    text = apply(tokenizer, marked, generate, tools, template_kwargs)
    if marked is messages:
        return Rendered(text)
    rendered = _take_out(text, *marks)
    if rendered is None or rendered.text != apply(tokenizer, messages, generate, tools, template_kwargs):
        raise ValueError(
            "a user's (or system's, or tool's) message spells a special token and the chat template looks inside it: it "
            "cannot be kept as text"
        )
    return rendered


def apply(tokenizer: Any, messages: Any, generate: bool, tools: list | None, kwargs: dict | None) -> Any:
    """What the template writes of messages, as text; of a list of conversations, a list. ValueError: it refuses."""
    from jinja2 import TemplateError, TemplateSyntaxError

    from posttrain.errors import UserError

    template = tokenizer.get_chat_template(tools=tools or None)
    try:
        return tokenizer.apply_chat_template(
            messages,
            chat_template=template if _today is None else _with_date(template, _today),
            tools=tools or None,
            tokenize=False,
            add_generation_prompt=generate,
            **kwargs or {},
        )
    except TemplateSyntaxError as error:
        raise UserError(f"the tokenizer's chat template is broken (line {error.lineno}: {error.message})") from None
    except TemplateError as error:
        raise ValueError(f"the tokenizer's chat template refuses the conversation: {error}") from None
    except (TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"the tokenizer's chat template fails on the conversation ({why})") from None


@lru_cache
def _with_date(template: str, day: datetime) -> str:
    """strftime_now("%d %b %Y") -> "24 Nov 2026", written into the template: the library always asks the clock."""
    return re.sub(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""", lambda found: repr(day.strftime(found[2])), template)


# ---------------------------------------------------------------- what was typed


def _mark(messages: Messages, special: list[str]) -> tuple[Messages, tuple[str, str]]:
    """Around every piece of a typed message that spells a special token, two characters that occur nowhere else. Where
    there is none, the same list comes back."""
    pattern = re.compile("|".join(map(re.escape, special))) if special else None

    def spells(message: dict) -> bool:
        content = message.get("content")
        return message["role"] != "assistant" and isinstance(content, str) and bool(pattern and pattern.search(content))

    if not any(map(spells, messages)):
        return messages, ("", "")
    used = set(repr(messages)) | {c for m in messages for c in m.get("content") or ""}
    unused = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)
    opening, closing = next(unused), next(unused)
    return [
        m | {"content": pattern.sub(lambda found: opening + found.group() + closing, m["content"])} if spells(m) else m
        for m in messages
    ], (opening, closing)


def _take_out(text: str, opening: str, closing: str) -> Rendered | None:
    """The text without the marks; None where a template has torn a pair of them apart."""
    parts, typed, length = re.split(f"([{opening}{closing}])", text), [], 0
    plain = []
    expected = opening
    for part in parts:
        if part in (opening, closing):
            if part != expected:
                return None
            typed.append(length)
            expected = closing if part == opening else opening
        else:
            plain.append(part)
            length += len(part)
    if expected == closing:
        return None
    return Rendered("".join(plain), tuple(zip(typed[::2], typed[1::2], strict=True)))


# ---------------------------------------------------------------- ids


def special_ids(tokenizer: Any) -> set[int]:
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def special_strings(tokenizer: Any) -> list[str]:
    strings = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted((s for s in strings | set(tokenizer.all_special_tokens) if s), key=len, reverse=True)


def encode(tokenizer: Any, rendered: Rendered, *, continued: bool = False) -> list[int]:
    """continued: it stands behind other text, so no space is put before its first word."""
    ids: list[int] = []
    borders = [0, *(border for piece in rendered.typed for border in piece), len(rendered.text)]
    for number, (start, end) in enumerate(pairwise(borders)):
        if start < end:
            behind = continued or bool(ids)
            ids += _piece_ids(tokenizer, rendered.text[start:end], split=number % 2 == 1, continued=behind)
    return ids


def _piece_ids(tokenizer: Any, text: str, *, split: bool, continued: bool) -> list[int]:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=split)["input_ids"])

    if continued:  # behind a newline, a SentencePiece tokenizer does not add the space it puts before the first word
        newline, both = ids("\n"), ids("\n" + text)
        if both[: len(newline)] == newline:
            return both[len(newline) :]
    return ids(text)
