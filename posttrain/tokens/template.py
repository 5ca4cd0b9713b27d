"""The only place where text becomes ids. Training, rollout and evaluation all call it.

The contract, for a prompt (a list of messages) and the reply to it:

    prompt ids       exactly those of tokenizer.apply_chat_template(messages, add_generation_prompt=True): that is how
                     everybody will call the model
    completion ids   the rest of the whole conversation's ids where these begin with the prompt's; where they do not (a
                     BPE merge or a SentencePiece space across the seam, a template that opens or closes a block of
                     thoughts in its generation prompt), the reply's own text tokenised alone
    row              prompt ids + completion ids, always; the turn-end token is the completion's last id, and
                     supervised; what a template writes after it (ChatML's newline) belongs to the next turn's prompt

The mask comes from these lengths. It is never searched for in the text, and never inferred from token values. That the
completion holds the reply whole (its text, its thoughts, its tool calls) is checked for every row: reply.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.errors import UserError
from posttrain.tokens import reply as replies
from posttrain.tokens.batch import Example
from posttrain.tokens.rendering import Messages, encode, render, special_ids

# Given to tokenizers without a chat template: ChatML. {end} is <|im_end|> where the tokenizer knows it, else its eos
# token.
PLAIN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{end}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prepare_tokenizer(tokenizer: Any, ends: list[int] | int | None = None) -> list[str]:
    """Give it a chat template and a pad token if it has none; returns a line to print for each thing done.

    ends: the ids that end an answer of this model, as its generation config has them.
    pad = eos touches no embedding, and is harmless here: masks come from lengths."""
    done = []
    if tokenizer.eos_token is None:
        raise ValueError(
            "the tokenizer has no eos token: nothing could teach the model to stop; set tokenizer.eos_token and save it"
        )
    if tokenizer.chat_template is None:
        end = "<|im_end|>" if "<|im_end|>" in tokenizer.get_vocab() else tokenizer.eos_token
        bos = tokenizer.bos_token if tokenizer.bos_token and tokenizer.bos_token != tokenizer.eos_token else ""
        tokenizer.chat_template = bos + PLAIN_TEMPLATE.replace("{end}", end)
        done.append(
            f"the tokenizer has no chat template: using ChatML with {end} as the end of a turn (tokens/template.py)"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        done.append(
            f"the tokenizer has no pad token: padding with {tokenizer.eos_token} (masks come from lengths, so this is "
            "harmless)"
        )
    # Only special tokens: where a config is silent, its class names an id that may be any letter of this vocabulary.
    known = special_ids(tokenizer)
    tokenizer.ends_of_the_model = [i for i in ([ends] if isinstance(ends, int) else ends or []) if i in known]
    return done


def prompt_ids(
    tokenizer: Any, messages: Messages, *, tools: list | None = None, template_kwargs: dict | None = None
) -> list[int]:
    """The ids the model sees before it answers."""
    shown = render(tokenizer, messages, generate=True, tools=tools, template_kwargs=template_kwargs)
    if tools:
        _refuse_hidden_tools(tokenizer, messages, shown.text, template_kwargs)
    return encode(tokenizer, shown)


def completion_ids(
    tokenizer: Any,
    messages: Messages,
    reply: str | dict[str, Any],
    *,
    tools: list | None = None,
    template_kwargs: dict | None = None,
) -> list[int]:
    """The ids of `reply` (text, or an assistant message) as the answer to `messages`, with the turn-end token."""
    message = {"role": "assistant", "content": reply} if isinstance(reply, str) else reply
    return replies.completion(tokenizer, messages, message, {"tools": tools, "template_kwargs": template_kwargs})


def conversation_examples(
    tokenizer: Any,
    messages: Messages,
    *,
    learn_from: int = 0,
    last_only: bool = False,
    tools: list | None = None,
    template_kwargs: dict | None = None,
) -> list[Example]:
    """A whole conversation with its assistant turns supervised: one row where each turn's prompt begins with what stood
    before, else (a template that rewrites earlier turns) one row per supervised turn.

    learn_from: the first message that is to be learned (earlier answers are context); last_only: only the last answer
    is. A message with "train": False is context, too."""
    shown = {"tools": tools, "template_kwargs": template_kwargs}
    return examples_of(tokenizer, to_learn(messages, learn_from, last_only, shown))


@dataclass(frozen=True)
class Conversation:
    messages: Messages
    learned: list[int]  # which of them are answers to learn
    shown: dict[str, Any]  # what the chat template is given besides: tools, template_kwargs


def to_learn(
    messages: Messages, learn_from: int = 0, last_only: bool = False, shown: dict | None = None
) -> Conversation:
    """Which answers of a conversation are learned: the arguments of conversation_examples."""
    answers = answers_in(messages, learn_from, last_only)
    if not answers:
        raise ValueError("no assistant message: nothing to learn from")
    learned = [i for i in answers if messages[i].get("train", True)]
    if not learned:
        raise ValueError("every assistant message is marked as not to be learned")
    messages = [{key: value for key, value in m.items() if key != "train"} for m in messages]
    return Conversation(messages, learned, shown or {})


def answers_in(messages: Messages, learn_from: int, last_only: bool) -> list[int]:
    """The assistant's messages from learn_from on, or the last of them; one may be marked as not to be learned."""
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= learn_from]
    return answers[-1:] if last_only else answers


def examples_of(tokenizer: Any, conversation: Conversation) -> list[Example]:
    """Turn by turn, each rendered and tokenised for itself. one_pass.py does it for many conversations at once."""
    messages, shown = conversation.messages, conversation.shown
    turns = [
        (prompt_ids(tokenizer, messages[:i], **shown), completion_ids(tokenizer, messages[:i], messages[i], **shown))
        for i in conversation.learned
    ]
    ids: list[int] = []
    mask: list[bool] = []
    for prompt, completion in turns:
        if prompt[: len(ids)] != ids:
            return [Example.of(prompt, completion) for prompt, completion in turns]
        mask += [False] * (len(prompt) - len(ids)) + [True] * len(completion)
        ids = prompt + completion
    return [Example(ids, mask)]


def text_example(tokenizer: Any, text: str) -> Example:
    """Plain text, trained whole: what the tokenizer makes of it (its own bos included), and eos."""
    # written out, as some sets do: not twice
    has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    ids = list(tokenizer(text, add_special_tokens=not has_bos)["input_ids"])
    if not ids or ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    return Example(ids, [True] * len(ids))


def stop_ids(tokenizer: Any) -> list[int]:
    """What ends an answer: the template's turn-end token, eos, and what the model's own generation config names."""
    turn_end = replies.turn_end(tokenizer)
    return sorted({turn_end, tokenizer.eos_token_id, *getattr(tokenizer, "ends_of_the_model", [])})


def remarks(tokenizer: Any, template_kwargs: dict | None = None) -> list[str]:
    """What the template writes that nobody gave it, to be said once before training: a system message of its own,
    today's date, an open block of thoughts."""
    asked, shown = [{"role": "user", "content": "Hello."}], {"template_kwargs": template_kwargs}
    lines = []
    try:
        prompt = render(tokenizer, asked, generate=True, **shown).text
        system = [{"role": "system", "content": "Sys."}, *asked]
        behind_system = render(tokenizer, system, generate=True, **shown).text.partition("Sys.")[2]
    except UserError:
        raise
    except ValueError:  # no system role, or arguments of which every row has its own: the rows will tell
        return []
    before = prompt.partition("Hello.")[0]
    if len(before) > len(behind_system.partition("Hello.")[0]) + 40:
        lines.append(f"the chat template writes a system message of its own: {before.strip()!r:.160}")
    if "strftime_now" in tokenizer.get_chat_template() and "date_string" not in (template_kwargs or {}):
        lines.append("the chat template writes today's date: it stays that of the run's start, also when it is resumed")
    if (tags := replies.open_thoughts(tokenizer, asked, prompt, shown)) is not None:
        lines.append(
            f"the chat template opens {tags[0]} for the model: answers begin with thoughts, and one without teaches it to "
            "close them at once"
        )
    return lines


def _refuse_hidden_tools(tokenizer: Any, messages: Messages, shown: str, template_kwargs: dict | None) -> None:
    """A template that does not know tools would leave them out without a word."""
    if shown == render(tokenizer, messages, generate=True, template_kwargs=template_kwargs).text:
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} does not show tools to the model"
        )


__all__ = [
    "completion_ids",
    "conversation_examples",
    "prepare_tokenizer",
    "prompt_ids",
    "remarks",
    "special_ids",
    "stop_ids",
    "text_example",
]
