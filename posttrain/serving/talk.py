"""One answer, or the answers of several models at the same time, token by token in this thread: for posttrain.chat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from posttrain.errors import UserError
from posttrain.rollouts.sampling import draw_uniforms
from posttrain.serving.growing import Written
from posttrain.serving.voices import Voice

Messages = list[dict[str, Any]]


@dataclass
class Turn:
    """What one model is about to answer."""

    voice: Voice
    ids: list[int]  # of the prompt
    max_new_tokens: int
    temperature: float
    seed: int
    said: list[int] = field(default_factory=list)
    end: str | None = None  # stop, length
    written: Written = field(init=False)
    uniforms: Tensor | None = None

    def __post_init__(self) -> None:
        self.written = Written(self.voice.tokenizer)
        if self.temperature > 0:  # what the server draws for this seed, too
            self.uniforms = draw_uniforms(1, self.max_new_tokens, seed=self.seed, step=0)[0]

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

    def step(self) -> str:
        """One token -> the text that is new."""
        running = self.voice.running
        self.voice.switch_on()
        if not self.said:
            running.join(running.read([self.ids], [1]))
        uniform = 0.0 if self.uniforms is None else float(self.uniforms[len(self.said)])
        token = running.sample([self.temperature], [uniform], [0]).tokens[0]
        self.said.append(token)
        piece = self.written.add(token)
        if token in self.voice.stop_ids:
            self.end = "stop"
        elif len(self.said) == self.max_new_tokens:
            self.end = "length"
        if self.end is not None:
            piece += self.written.end()
        running.go_on([] if self.end else [0], [] if self.end else [token])
        return piece


def spoken(turns: list[Turn]) -> Iterator[tuple[int, str]]:
    """(which of them, the text that is new), in turn, until all have ended. Closed before: the rest is not said."""
    try:
        while any(turn.end is None for turn in turns):
            for i, turn in enumerate(turns):
                if turn.end is None:
                    yield i, turn.step()
    finally:
        for turn in turns:
            turn.voice.running.go_on([], [])
