"""What a client reads: OpenAI's JSON for chat and completions, whole or piece by piece."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from posttrain.serving.engine import Token
from posttrain.serving.growing import Written


@dataclass
class Answer:
    """One choice: how far it has come."""

    written: Written
    tokens: list[Token] = field(default_factory=list)
    end: str | None = None  # stop, length; or cancelled, error

    def take(self, token: Token) -> str:
        """-> the text that is new; nothing after its end."""
        if self.end is not None:
            return ""
        if token.id is None:
            self.end = token.end
            return ""
        self.tokens.append(token)
        self.end = token.end
        piece = self.written.add(token.id)
        if not self.written.stopped and self.end is not None:
            piece += self.written.end()
        if self.written.stopped:
            self.end = "stop"
        return piece

    @property
    def text(self) -> str:
        return self.written.text

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens if token.id is not None]


@dataclass
class Shape:
    """One of OpenAI's two answers: chat.completion or text_completion."""

    chat: bool
    model: str
    tokenizer: Any
    logprobs: bool
    top: int
    ids: bool  # return_token_ids
    id: str = ""
    created: int = 0

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)
        self.created = int(time.time())

    def whole(self, answers: list[Answer], prompts: list[list[int]]) -> dict[str, Any]:
        """answers: prompt by prompt, n each."""
        each = len(answers) // len(prompts)
        choices = []
        for i, answer in enumerate(answers):
            said = {"message": {"role": "assistant", "content": answer.text}} if self.chat else {"text": answer.text}
            choice = {"index": i, **said, "logprobs": self.of_tokens(answer.tokens), "finish_reason": answer.end}
            if self.ids:
                choice |= {"token_ids": answer.ids} | ({} if self.chat else {"prompt_token_ids": prompts[i // each]})
            choices.append(choice)
        more = {"prompt_token_ids": prompts[0]} if self.ids and self.chat else {}
        kind = "chat.completion" if self.chat else "text_completion"
        return self._with(kind, choices) | {"usage": usage(answers, prompts)} | more

    def piece(self, index: int, text: str, tokens: list[Token], end: str | None, *, first: bool = False) -> str:
        """One server-sent event."""
        delta = {"role": "assistant", "content": ""} if first else {"content": text} if text else {}
        said = {"delta": delta} if self.chat else {"text": text}
        choice = {"index": index, **said, "logprobs": self.of_tokens(tokens), "finish_reason": end}
        if self.ids:
            choice["token_ids"] = [token.id for token in tokens]
        return event(self._with("chat.completion.chunk" if self.chat else "text_completion", [choice]))

    def last(self, answers: list[Answer], prompts: list[list[int]]) -> str:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return event(self._with(kind, []) | {"usage": usage(answers, prompts)})

    def _with(self, kind: str, choices: list[dict]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def of_tokens(self, tokens: list[Token]) -> dict[str, Any] | None:
        """Log-probs, the end token's included."""
        if not self.logprobs or not tokens:
            return None
        if self.chat:
            return {"content": [self._one(t.id, t.logp) | {"top_logprobs": [self._one(*of) for of in t.likeliest]} for t in tokens], "refusal": None}  # fmt: skip
        names = [self._name(token.id) for token in tokens]
        likeliest = [{self._name(i): logp for i, logp in token.likeliest} for token in tokens] if self.top else None
        return {"tokens": names, "token_logprobs": [token.logp for token in tokens], "top_logprobs": likeliest, "text_offset": None}  # fmt: skip

    def _one(self, token: int | None, logp: float) -> dict[str, Any]:
        name = self._name(token)
        return {"token": name, "logprob": logp, "bytes": None if "\ufffd" in name else list(name.encode())}

    def _name(self, token: int | None) -> str:
        return self.tokenizer.decode([token])


def usage(answers: list[Answer], prompts: list[list[int]]) -> dict[str, int]:
    """Tokens read (each prompt once) and said (end tokens included)."""
    read, said = sum(map(len, prompts)), sum(len(answer.tokens) for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}


def event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


DONE = "data: [DONE]\n\n"
