"""Where an assistant's reply begins and ends in what the chat template writes, and whether it is there whole.

Most templates write the conversation with the reply as the prompt and something behind it: that is the reply's text.
Where they do not, because their generation prompt opens or closes a block of thoughts (`<think>`), the reply's own text
is found and put behind the prompt; a reply that the prompt opens thoughts for, and that never closes them, is refused.
"""

from __future__ import annotations

from typing import Any

from posttrain.tokens.rendering import Messages, Rendered, encode, render, special_ids

Tags = tuple[str, str]
THOUGHTS: tuple[Tags, ...] = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)
REASONING = ("reasoning_content", "thinking")  # fields in which messages keep their thoughts
_STAND_IN = "\ue000reply\ue000"  # for the reply, to see what the template writes around it


def completion(tokenizer: Any, messages: Messages, reply: dict, shown: dict) -> list[int]:
    """The ids of the assistant message `reply` behind `messages`, up to and including the end of the turn.

    shown: tools and template_kwargs, as render takes them."""
    prompt = render(tokenizer, messages, generate=True, **shown)
    whole = render(tokenizer, [*messages, reply], generate=False, **shown)
    before, _, after = around(tokenizer, messages, shown)
    thoughts = open_thoughts(tokenizer, messages, prompt.text, shown)

    if whole.text.startswith(prompt.text):
        text = whole.since(len(prompt.text))
        prompt_ids, ids = encode(tokenizer, prompt), encode(tokenizer, whole)
        behind = ids[: len(prompt_ids)] == prompt_ids
        # else a merge across the seam: the reply's text is tokenised alone
        rest = ids[len(prompt_ids) :] if behind else encode(tokenizer, text, continued=True)
    else:
        text = _own_text(reply, prompt.text, thoughts, whole, before, after)
        rest = encode(tokenizer, text, continued=True)
    if thoughts is not None and thoughts[0] in text.text and not any(reply.get(name) for name in REASONING):
        # opened twice: this template wants thoughts in their own field
        return completion(tokenizer, messages, _thoughts_apart(reply, thoughts), shown)
    rest = _up_to_the_end(tokenizer, rest, text.text, after)
    _refuse_what_is_not_whole(tokenizer, reply, thoughts, text.text, rest)
    return rest


def around(tokenizer: Any, messages: Messages, shown: dict) -> tuple[str, str, str]:
    """What the template writes before and after a plain reply to these messages."""
    stand_in = [*messages, {"role": "assistant", "content": _STAND_IN}]
    parts = render(tokenizer, stand_in, generate=False, **shown).text.rpartition(_STAND_IN)
    if not parts[1]:
        raise ValueError(
            "the chat template does not show the assistant's reply: nothing to learn from; check the template"
        )
    return parts


def _own_text(reply: dict, prompt: str, opened: Tags | None, whole: Rendered, before: str, after: str) -> Rendered:
    """The reply's text where the conversation does not begin with the prompt."""
    content = (reply.get("content") or "").strip()
    start = _common(prompt, whole.text)
    if opened is not None:  # the prompt has opened the thoughts: what closes them is the reply's to say
        tag, closing = opened
        if whole.text[start:].lstrip().startswith(closing):
            return whole.since(whole.text.index(closing, start))
        thoughts = next((reply[name] for name in REASONING if reply.get(name)), None)
        if thoughts is not None:
            content = f"{thoughts.strip()}\n{closing}\n\n{content}"
        return Rendered(content.removeprefix(tag).lstrip() + after)
    start = _common(before, whole.text)
    for place in range(start, max(-1, start - len(content)), -1):
        if content and whole.text.startswith(content, place):
            start = place  # the template's own words are like the reply's first ones
            break
    else:
        for tag, _ in THOUGHTS:  # thoughts that the reply brings begin with their tag
            if whole.text[:start].rstrip().endswith(tag):
                start = whole.text[:start].rindex(tag)
    return whole.since(start)


def _thoughts_apart(reply: dict, tags: Tags) -> dict:
    thoughts, _, answer = (reply.get("content") or "").partition(tags[1])
    return reply | {"content": answer.strip(), REASONING[0]: thoughts.replace(tags[0], "", 1).strip()}


def open_thoughts(tokenizer: Any, messages: Messages, prompt: str, shown: dict) -> Tags | None:
    """The tags of a block of thoughts that the generation prompt opens and does not close."""
    if not any(opening in prompt for opening, _ in THOUGHTS):
        return None
    asked = render(tokenizer, messages, generate=False, **shown).text  # a user may write of <think>: that opens nothing
    own = prompt[_common(prompt, asked) :]
    return next((tags for tags in THOUGHTS if own.rfind(tags[0]) > own.rfind(tags[1])), None)


def _common(a: str, b: str) -> int:
    """How many characters both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _up_to_the_end(tokenizer: Any, ids: list[int], text: str, after: str) -> list[int]:
    """Without what a template writes behind the turn's end (ChatML's newline): it belongs to the next turn's prompt."""
    behind, end = end_of_turn(tokenizer, after)
    if not end:
        return [*ids, tokenizer.eos_token_id]  # a template without a turn-end token: eos is what will stop the model
    if text.endswith(after):
        return ids[: len(ids) - behind]
    for stop in range(len(ids), 0, -1):  # tool calls may be followed by something else: the last such end counts
        if ids[max(0, stop - len(end)) : stop] == end:
            return ids[:stop]
    if ids and ids[-1] in special_ids(tokenizer):  # a turn that calls a tool may end in a token of its own
        return ids
    return [*ids, *end]


def turn_end(tokenizer: Any) -> int:
    """The token that ends a turn; eos where the template writes none."""
    _, _, after = around(tokenizer, [{"role": "user", "content": "a"}], {})
    _, end = end_of_turn(tokenizer, after)
    return end[-1] if end else tokenizer.eos_token_id


def end_of_turn(tokenizer: Any, after: str) -> tuple[int, list[int]]:
    """In what the template writes after a reply: (how many ids behind the end of the turn, the ids of that end)."""
    special, tail = special_ids(tokenizer), encode(tokenizer, Rendered(after), continued=True)
    first = next((i for i, token in enumerate(tail) if token in special), None)
    if first is None:
        return len(tail), []
    last = first
    while last + 1 < len(tail) and tail[last + 1] in special:  # several at once, as Cohere writes them
        last += 1
    return len(tail) - 1 - last, tail[first : last + 1]


# ---------------------------------------------------------------- is it whole?


def _refuse_what_is_not_whole(tokenizer: Any, reply: dict, opened: Tags | None, text: str, ids: list[int]) -> None:
    """Asked of every reply of every run: its text, its thoughts and its tool calls are in what is learned."""
    if opened is not None and opened[1] not in text:
        raise ValueError(
            f"the chat template opens {opened[0]} in its generation prompt and the reply never closes it: the model "
            "would learn to answer inside its thoughts. Give the thoughts (reasoning_content, or "
            f"{opened[0]}…{opened[1]} before the answer), or switch them off where the template can: "
            "data.chat_template_kwargs: {enable_thinking: false}"
        )
    said = _squeezed(tokenizer.decode(ids, skip_special_tokens=False))
    if opened is not None:
        said = opened[0] + said  # stands in the prompt
    for what, piece in _pieces(reply):
        if _squeezed(piece) in said:
            continue
        ids_alone = tokenizer(piece, add_special_tokens=False)["input_ids"]  # a tokenizer may not keep every character
        if _squeezed(tokenizer.decode(ids_alone, skip_special_tokens=False)) not in said:
            raise ValueError(f"the chat template drops {what} of the reply ({piece!r:.60}): it would not be learned")


def _pieces(reply: dict) -> list[tuple[str, str]]:
    """What has to be found again: content (thoughts in it apart: a template may write their tags in its own way),
    thoughts in a field of their own, names and arguments of tool calls."""
    content = reply.get("content") or ""
    pieces = [("reasoning", reply[name]) for name in REASONING if reply.get(name)]
    for opening, closing in THOUGHTS:
        before, found, behind = content.partition(closing)
        if found:
            pieces.append(("the thoughts", before.replace(opening, "", 1)))
            content = behind
    pieces.append(("a part", content))
    for call in reply.get("tool_calls") or []:
        function = call.get("function", call)
        pieces.append(("a tool call", str(function["name"])))
        arguments = function.get("arguments") or {}
        for name, value in arguments.items() if isinstance(arguments, dict) else []:
            pieces.append(("an argument", str(name)))
            if isinstance(value, str):
                pieces.append(("an argument", value))
    return [(what, piece) for what, piece in pieces if piece.strip()]


def _squeezed(text: str) -> str:
    """White space is a template's to change: it trims, and writes its own lines around thoughts."""
    return "".join(text.split())
