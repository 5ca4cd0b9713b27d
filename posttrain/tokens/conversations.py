"""Ten conversations that a chat template should survive, and what became of each: asked of a model of yours before it
is trained (python -m posttrain.doctor --model), by other means than those that encode the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.errors import UserError
from posttrain.tokens import reply as replies
from posttrain.tokens import template
from posttrain.tokens.batch import Example
from posttrain.tokens.rendering import Messages, render

TOOL = {
    "type": "function",
    "function": {
        "name": "add_up",
        "description": "Adds two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}
CODE = "Here it is:\n\n```python\ndef double(x):\n    return 2 * x\n```\n\nIt returns twice what it is given."


@dataclass(frozen=True)
class Conversation:
    name: str
    messages: Messages
    tools: list | None = None
    # False: not every template knows it (a system message, thoughts, tools), so it is no fault when one does not
    plain: bool = True


def conversations(typed: str) -> list[Conversation]:
    """typed: a special token of the tokenizer, which a user spells."""

    def chat(*texts: str) -> Messages:
        roles = ("user", "assistant") * len(texts)
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]

    thoughts = {"reasoning_content": "Seven times six. Six sevens are 42."}
    call = {"type": "function", "function": {"name": "add_up", "arguments": {"a": 2, "b": 3}}}
    return [
        Conversation("a question", chat("What is the capital of France?", "The capital of France is Paris.")),
        Conversation("one digit", chat("What is 3 + 4? Answer with the number alone.", "7")),
        Conversation("code", chat("Write a function that doubles a number.", CODE)),
        Conversation("other scripts", chat("Grüße! 你好", "Grüß dich! 你好 🙂 ¿Qué tal?")),
        Conversation("two turns", chat("Name a colour.", "Blue.", "Another one, please.", "Green, or red.")),
        Conversation("its end in the answer", chat("Say user, then assistant.", "user\nassistant\nuser")),
        Conversation("a special token typed", chat(f"What does {typed} mean?", "It is a mark of the model's own.")),
        Conversation("a system message",
                     [{"role": "system", "content": "Answer in one word."}, *chat("What do cows drink?", "Water.")],
                     plain=False),
        Conversation("thoughts",
                     [*chat("What is 6 * 7?"), {"role": "assistant", "content": "It is 42."} | thoughts], plain=False),
        Conversation("a tool",
                     [*chat("What is 2 + 3?"), {"role": "assistant", "content": "", "tool_calls": [call]},
                      {"role": "tool", "name": "add_up", "content": "5"}, {"role": "assistant", "content": "It is 5."}],
                     [TOOL], plain=False),
    ]  # fmt: skip


def needs_thoughts(tokenizer: Any, template_kwargs: dict | None) -> bool:
    """Does the template open a block of thoughts for every answer?"""
    asked, shown = [{"role": "user", "content": "Hello."}], {"template_kwargs": template_kwargs}
    prompt = render(tokenizer, asked, generate=True, **shown).text
    return replies.open_thoughts(tokenizer, asked, prompt, shown) is not None


def with_thoughts(conversation: Conversation) -> Conversation:
    def thinking(message: dict) -> dict:
        thinks = message["role"] == "assistant" and "reasoning_content" not in message
        return message | ({"reasoning_content": "That is easy."} if thinks else {})

    return Conversation(
        conversation.name, [thinking(m) for m in conversation.messages], conversation.tools, conversation.plain
    )


def encoded(tokenizer: Any, conversation: Conversation, typed: str, template_kwargs: dict | None) -> list[Example]:
    """Its rows, as SFT would learn them, or a ValueError that says what is wrong with them."""
    messages, shown = conversation.messages, {"tools": conversation.tools, "template_kwargs": template_kwargs}
    rows = template.conversation_examples(tokenizer, messages, **shown)
    asked = messages[: [m["role"] for m in messages].index("assistant")]
    prompt = template.prompt_ids(tokenizer, asked, **shown)
    if rows[0].input_ids[: len(prompt)] != prompt or any(rows[0].completion_mask[: len(prompt)]):
        raise ValueError("the row does not begin with its prompt, unlearned")
    if not any(typed in m["content"] for m in asked):
        called = tokenizer.apply_chat_template(
            asked, tools=conversation.tools, add_generation_prompt=True, return_dict=False, **template_kwargs or {}
        )
        if list(called) != prompt:
            raise ValueError(
                "the prompt has other ids than apply_chat_template gives everybody who will call the model"
            )
    else:
        harmless = [m | {"content": m["content"].replace(typed, "it")} for m in asked]
        special, other = tokenizer.convert_tokens_to_ids(typed), template.prompt_ids(tokenizer, harmless, **shown)
        if prompt.count(special) != other.count(special):
            raise ValueError(f"what a user types ({typed}) becomes the special token")
    learned = ""
    for row in rows:
        ids = [i for i, learns in zip(row.input_ids, row.completion_mask, strict=True) if learns]
        learned += tokenizer.decode(ids)
        if ids[-1] not in template.stop_ids(tokenizer):
            raise ValueError(f"what is learned ends with {tokenizer.decode(ids[-1:])!r}, which ends no answer")
        if any("\ue000" <= character <= "\uf8ff" for character in tokenizer.decode(row.input_ids)):
            raise ValueError("a mark of the encoder's own is left in the row")
    for message in messages:
        text = message["content"] if message["role"] == "assistant" else ""
        if "".join(text.split()) not in "".join(learned.split()):
            raise ValueError(f"the answer {text!r:.40} is not in what is learned")
    return rows


def tried(tokenizer: Any, template_kwargs: dict | None = None) -> tuple[dict[str, list[Example]], dict[str, str], bool]:
    """({name: rows} of those that are whole, {name: what is wrong} of the others, does every answer need thoughts?)"""
    typed = tokenizer.convert_ids_to_tokens(template.stop_ids(tokenizer)[0])
    thinking = needs_thoughts(tokenizer, template_kwargs)
    whole, wrong = {}, {}
    for conversation in conversations(typed):
        try:
            shown = with_thoughts(conversation) if thinking else conversation
            whole[conversation.name] = encoded(tokenizer, shown, typed, template_kwargs)
        except UserError:
            raise
        except ValueError as problem:
            wrong[conversation.name] = str(problem)
    return whole, wrong, thinking
