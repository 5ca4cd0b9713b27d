"""The only place where text becomes ids. Training, rollout and evaluation all call it.

The contract, for a prompt (a list of messages) and the reply to it:

    prompt ids       exactly those of tokenizer.apply_chat_template(messages, add_generation_prompt=True): that is how
                     everybody will call the model
    completion ids   the rest of the whole conversation's ids where these begin with the prompt's; where they do not (a
                     BPE merge or a SentencePiece space across the seam), the reply's text tokenised alone
    row              prompt ids + completion ids, always; the turn-end token is the completion's last id, and
                     supervised; what a template writes after it (ChatML's newline) belongs to the next turn's prompt

The mask comes from these lengths. It is never searched for in the text, and never inferred from token values.

What a user types stays text: where a message's content spells a special token ("<|im_end|>"), that piece is tokenised
with special tokens split, so nobody ends a turn by typing.
"""

from __future__ import annotations

import re

from posttrain.tokens.batch import Example

Messages = list[dict[str, str]]

# Given to tokenizers without a chat template: ChatML. {end} is <|im_end|> where the tokenizer knows it, else its eos
# token.
PLAIN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{end}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_OPEN, _CLOSE = "\ue000typed\ue001", "\ue001typed\ue000"  # mark, inside rendered text, a piece that must stay text
_REPLY = "\ue000reply\ue000"  # stands for the reply, to see what the template writes around it


def prepare_tokenizer(tokenizer) -> list[str]:
    """Give it a chat template and a pad token if it has none; returns a line to print for each thing done.

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
            f"the tokenizer has no chat template: using ChatML with {end} as the end of a turn (posttrain/tokens/template.py)"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        done.append(
            f"the tokenizer has no pad token: padding with {tokenizer.eos_token} (masks come from lengths, so this is harmless)"
        )
    return done


def prompt_ids(tokenizer, messages: Messages) -> list[int]:
    """The ids the model sees before it answers."""
    return _encode(tokenizer, _render(tokenizer, messages, True))


def completion_ids(tokenizer, messages: Messages, reply: str) -> list[int]:
    """The ids of `reply` as the answer to `messages`, up to and including the turn-end token."""
    prompt_text = _render(tokenizer, messages, True)
    whole_text = _render(tokenizer, [*messages, {"role": "assistant", "content": reply}], False)
    before, shown, after = _render(tokenizer, [*messages, {"role": "assistant", "content": _REPLY}], False).rpartition(
        _REPLY
    )
    if not shown:
        raise ValueError(
            "the chat template does not show the assistant's reply: nothing to learn from; check the template"
        )

    prompt, whole = _encode(tokenizer, prompt_text), _encode(tokenizer, whole_text)
    if whole_text.startswith(prompt_text) and whole[: len(prompt)] == prompt:
        rest = whole[len(prompt) :]
    else:  # a merge across the seam, or a generation prompt that is not how the template writes a turn
        start = len(prompt_text) if whole_text.startswith(prompt_text) else len(before)
        rest = _encode(tokenizer, whole_text[start:], continued=True)

    # End at the first special token that the template writes after the reply: the turn-end token.
    special, tail = special_ids(tokenizer), _encode(tokenizer, after, continued=True)
    ends = [i for i, token in enumerate(tail) if token in special]
    if not ends:
        return [*rest, tokenizer.eos_token_id]  # a template without a turn-end token: eos is what will stop the model
    return rest[: len(rest) - (len(tail) - 1 - ends[0])]


def conversation_examples(
    tokenizer, messages: Messages, *, learn_from: int = 0, last_only: bool = False
) -> list[Example]:
    """A whole conversation with its assistant turns supervised: one row where each turn's prompt begins with what stood
    before, else (a template that rewrites earlier turns) one row per supervised turn.

    learn_from: the first message that is to be learned (earlier answers are context); last_only: only the last answer
    is."""
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= learn_from]
    if not answers:
        raise ValueError("no assistant message: nothing to learn from")
    turns = [
        (prompt_ids(tokenizer, messages[:i]), completion_ids(tokenizer, messages[:i], messages[i]["content"]))
        for i in (answers[-1:] if last_only else answers)
    ]
    ids: list[int] = []
    mask: list[bool] = []
    for prompt, completion in turns:
        if prompt[: len(ids)] != ids:
            return [Example.of(prompt, completion) for prompt, completion in turns]
        mask += [False] * (len(prompt) - len(ids)) + [True] * len(completion)
        ids = prompt + completion
    return [Example(ids, mask)]


def text_example(tokenizer, text: str) -> Example:
    """Plain text, trained whole: what the tokenizer makes of it (its own bos included), and eos."""
    # written out, as some sets do: not twice
    has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    ids = list(tokenizer(text, add_special_tokens=not has_bos)["input_ids"])
    if not ids or ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    return Example(ids, [True] * len(ids))


def stop_ids(tokenizer) -> list[int]:
    """What ends an answer: the template's turn-end token, and eos."""
    turn_end = completion_ids(tokenizer, [{"role": "user", "content": "a"}], "b")[-1]
    return sorted({turn_end, tokenizer.eos_token_id})


def special_ids(tokenizer) -> set[int]:
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _special_strings(tokenizer) -> list[str]:
    strings = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} | set(
        tokenizer.all_special_tokens
    )
    return sorted((s for s in strings if s), key=len, reverse=True)


def _protect(tokenizer, content: str) -> str:
    """Mark every piece of a message that spells a special token."""
    strings = _special_strings(tokenizer)
    if not any(s in content for s in strings):
        return content
    return re.sub("|".join(map(re.escape, strings)), lambda m: _OPEN + m.group() + _CLOSE, content)


def _render(tokenizer, messages: Messages, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    messages = [m | {"content": _protect(tokenizer, m["content"])} for m in messages]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise ValueError(f"the tokenizer's chat template refuses the conversation: {error}") from None


def _encode(tokenizer, text: str, *, continued: bool = False) -> list[int]:
    """Rendered text -> ids: special tokens are special where the template wrote them, text where a user did."""
    ids: list[int] = []
    for piece in re.split(f"({_OPEN}.*?{_CLOSE})", text, flags=re.DOTALL):
        if piece:
            typed = piece.startswith(_OPEN)
            piece = piece.removeprefix(_OPEN).removesuffix(_CLOSE)
            ids += _piece_ids(tokenizer, piece, split=typed, continued=continued or bool(ids))
    return ids


def _piece_ids(tokenizer, text: str, *, split: bool, continued: bool) -> list[int]:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=split)["input_ids"])

    if continued:  # behind a newline, a SentencePiece tokenizer does not add the space it puts before the first word
        newline, both = ids("\n"), ids("\n" + text)
        if both[: len(newline)] == newline:
            return both[len(newline) :]
    return ids(text)
