"""One answer, or those of several models at the same time, as the engine writes them: for posttrain.chat."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import UserError
from posttrain.serving.engine import Engine, Request, Token
from posttrain.serving.growing import Written
from posttrain.serving.replies import Answer
from posttrain.serving.voices import Voice

Messages = list[dict[str, Any]]


@dataclass
class Turn:
    """What one model is about to answer, and how far it has come."""

    voice: Voice
    ids: list[int]  # of the prompt
    max_new_tokens: int
    temperature: float
    seed: int
    answer: Answer = field(init=False)

    def __post_init__(self) -> None:
        self.answer = Answer(Written(self.voice.tokenizer))

    @classmethod
    def to(cls, voice: Voice, messages: Messages, *, max_new_tokens: int, temperature: float, seed: int) -> Turn:
        try:
            ids = voice.prompt_ids(messages)
        except ValueError as problem:
            raise UserError(f"{voice.name}: {problem}") from None
        left = voice.limit - len(ids)
        if left < 1:
            raise UserError(
                f"the conversation has {len(ids)} tokens, {voice.name} reads {voice.limit}: /reset begins another"
            )
        return cls(voice, ids, min(left, max_new_tokens), temperature, seed)


def spoken(engine: Engine, turns: list[Turn]) -> Iterator[tuple[int, str]]:
    """(which of them, the text that is new), as it comes, until all have ended. Closed before: the rest is not said."""
    heard: queue.SimpleQueue[tuple[int, Token]] = queue.SimpleQueue()
    requests = [
        Request(
            turn.voice.name, turn.ids, turn.max_new_tokens, lambda token, i=i: heard.put((i, token)), temperature=turn.temperature,
            seed=turn.seed,
        )
        for i, turn in enumerate(turns)
    ]  # fmt: skip
    engine.submit(*requests)
    try:
        while any(turn.answer.end is None for turn in turns):
            i, token = heard.get()
            piece = turns[i].answer.take(token)
            if turns[i].answer.end == "error":
                raise UserError(f"{turns[i].voice.name} could not go on: what stands above says why")
            yield i, piece
    finally:
        for request in requests:
            engine.cancel(request)
