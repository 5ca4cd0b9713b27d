"""Many conversations -> ids in one pass, where the chat template only appends.

template.py renders and tokenises each turn's prompt and reply for themselves: that is right for every template, and
four times the work a turn. Most templates only append, and then the ids of the whole conversation begin with those of
each prompt. So the whole is tokenised once, all conversations of a chunk in one call, and a turn is a range of
characters in it, found again by the tokenizer's offsets.

Nothing of this is taken on trust. Every prompt, and the conversation up to every reply, is rendered; a conversation
is given back as None, for template.py, unless

    each of these texts begins the next         the template appends
    the reply stands in its turn, word by word  and ends as replies of this template end
    nobody has typed a special token, and there are no tools, thoughts or tool calls
    the seam is one of tokens, too: what stands between the last special token and the reply has the ids that it has
    without the reply. The whole prompt's ids are compared the first time; a tokenizer splits at special tokens
    before anything else, so what follows one has the same ids wherever it follows it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.errors import UserError
from posttrain.tokens import reply as replies
from posttrain.tokens.batch import Example
from posttrain.tokens.rendering import Messages, apply, special_ids, special_strings
from posttrain.tokens.template import Conversation

SHORT = 64  # characters of a seam that will come again ("assistant\n"); longer ones hold what a user said

# Of a turn, in characters of the whole text: where its prompt ends, where its last special token begins
Turn = tuple[int, int]


class OnePass:
    """For one tokenizer, after template.prepare_tokenizer; knows its seams."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.special = special_ids(tokenizer)
        self.strings = special_strings(tokenizer)
        self.seams: dict[str, list[int]] = {}  # last special token and what follows it -> their ids
        self.end = self._end() if tokenizer.is_fast and tokenizer.chat_template else None

    def _end(self) -> tuple[str, int, int] | None:
        """(what stands behind a reply, where in it the turn's last special token begins, its id)"""
        try:
            _, _, after = replies.around(self.tokenizer, [{"role": "user", "content": "a"}], {})
        except (UserError, ValueError):
            return None
        _, ids = replies.end_of_turn(self.tokenizer, after)
        token = self.tokenizer.convert_ids_to_tokens(ids[-1]) if ids else ""
        return (after, after.index(token), ids[-1]) if ids and after.count(token) == 1 else None

    def __call__(self, conversations: Sequence[Conversation]) -> list[Example | None]:
        out: list[Example | None] = [None] * len(conversations)
        if self.end is None:
            return out
        by_arguments: dict[str, list[int]] = {}
        for i, conversation in enumerate(conversations):
            if self._is_plain(conversation):
                by_arguments.setdefault(repr(conversation.shown.get("template_kwargs")), []).append(i)
        for chosen in by_arguments.values():
            for i, example in zip(chosen, self._alike([conversations[i] for i in chosen]), strict=True):
                out[i] = example
        return out

    def _is_plain(self, conversation: Conversation) -> bool:
        return not conversation.shown.get("tools") and all(
            m.keys() == {"role", "content"} and (m["role"] == "assistant" or not self._spelled(m["content"]))
            for m in conversation.messages
        )

    def _spelled(self, text: str) -> bool:
        return any(string in text for string in self.strings)

    def _alike(self, conversations: list[Conversation]) -> list[Example | None]:
        """All with the same arguments to the template."""
        kwargs = conversations[0].shown.get("template_kwargs")
        prompts = self._prompts([c.messages[:i] for c in conversations for i in c.learned], kwargs)
        wholes = self._texts([c.messages[: i + 1] for c in conversations for i in c.learned], False, kwargs)
        turns: list[list[Turn] | None] = []
        texts, k = [], 0
        for c in conversations:
            n = len(c.learned)
            turns.append(self._turns(c, prompts[k : k + n], wholes[k : k + n]))
            texts.append(wholes[k + n - 1] if turns[-1] is not None else None)
            k += n
        encodings = iter(self._encode([text for text in texts if text is not None]))
        return [
            None if text is None else self._row(text, next(encodings), turn)
            for text, turn in zip(texts, turns, strict=True)
        ]

    def _prompts(self, asked: list[Messages], kwargs: dict | None) -> list[str | None]:
        """The two sides of a pair stand one behind the other and ask the same: that is rendered once."""
        distinct: list[Messages] = []
        at = []
        for messages in asked:
            if not distinct or messages != distinct[-1]:
                distinct.append(messages)
            at.append(len(distinct) - 1)
        texts = self._texts(distinct, True, kwargs)
        return [texts[i] for i in at]

    def _texts(self, conversations: list[Messages], generate: bool, kwargs: dict | None) -> list[str | None]:
        """What the template writes of each; None of those that it refuses."""
        if not conversations:
            return []
        try:
            return apply(self.tokenizer, conversations, generate, None, kwargs)
        except ValueError:
            if len(conversations) == 1:
                return [None]
        return [text for one in conversations for text in self._texts([one], generate, kwargs)]

    def _encode(self, texts: list[str]) -> Any:
        if not texts:
            return []
        given = {"add_special_tokens": False, "split_special_tokens": False, "return_attention_mask": False}
        return self.tokenizer(texts, **given).encodings

    def _turns(self, c: Conversation, prompts: list[str | None], wholes: list[str | None]) -> list[Turn] | None:
        assert self.end is not None
        after, place, _ = self.end
        out, before = [], ""
        for i, prompt, whole in zip(c.learned, prompts, wholes, strict=True):
            if prompt is None or whole is None or not whole.startswith(prompt) or not whole.startswith(before):
                return None
            if len(prompt) < len(before) or not whole.endswith(after):
                return None
            begin, end = len(prompt), len(whole) - len(after)
            reply = c.messages[i]["content"].strip()
            if not reply or reply not in whole[begin:end]:
                return None
            out.append((begin, end + place))
            before = whole
        if any(opening in before for opening, _ in replies.THOUGHTS):
            return None
        return out

    def _row(self, text: str, encoding: Any, turns: list[Turn] | None) -> Example | None:
        assert self.end is not None
        ids, mask = encoding.ids, []
        for begin, end in turns or []:
            first, last = encoding.char_to_token(begin), encoding.char_to_token(end)
            if (
                first is None
                or last is None
                or ids[last] != self.end[2]
                or not self._is_a_seam(text, encoding, begin, first)
            ):
                return None
            mask += [False] * (first - len(mask)) + [True] * (last + 1 - first)
        return Example(ids[: len(mask)], mask)

    def _is_a_seam(self, text: str, encoding: Any, begin: int, first: int) -> bool:
        """Do the first tokens of the whole stand for the prompt, text[:begin], and for nothing else?"""
        ids = encoding.ids
        special = next((t for t in range(first - 1, max(-1, first - SHORT), -1) if ids[t] in self.special), None)
        if special is None:
            return ids[:first] == self._encode([text[:begin]])[0].ids
        start = encoding.token_to_chars(special)[0]
        seam = text[start:begin]
        if seam in self.seams:
            return ids[special:first] == self.seams[seam]
        if ids[:first] != self._encode([text[:begin]])[0].ids:
            return False
        if len(seam) <= SHORT:
            self.seams[seam] = ids[special:first]
        return True
