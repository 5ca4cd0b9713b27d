"""Between a client's request and the engine: answers as they come, and nothing goes on for a client that has left."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from posttrain.serving.engine import Closed, Engine, Full, Request, Token
from posttrain.serving.fields import SEEDS
from posttrain.serving.growing import Written
from posttrain.serving.refused import Refusal
from posttrain.serving.replies import Answer
from posttrain.serving.voices import Voice


@dataclass
class Wanted:
    """n answers to each of some prompts."""

    voice: Voice
    prompts: list[list[int]]
    max_new_tokens: list[int]  # of each prompt's answers
    n: int = 1
    temperature: float = 1.0
    seed: int | None = None
    top: int = 0
    stop: list[str] | None = None


class Conversation:
    """begin(), then `async for index, piece, token in conversation`, and in any case leave()."""

    def __init__(self, engine: Engine, wanted: Wanted):
        self.engine, self.wanted = engine, wanted
        count = len(wanted.prompts) * wanted.n
        self.answers = [Answer(Written(wanted.voice.tokenizer, wanted.stop)) for _ in range(count)]
        self.requests: list[Request] = []
        self.heard: asyncio.Queue[tuple[int, Token]] = asyncio.Queue()
        self.began, self.first = time.monotonic(), 0.0  # when the first token came

    def begin(self) -> None:
        """Refusal: the engine does not take it."""
        wanted, loop = self.wanted, asyncio.get_running_loop()
        seed = secrets.randbelow(SEEDS) if wanted.seed is None else wanted.seed  # of each prompt, as if it were alone
        for number, (ids, longest) in enumerate(zip(wanted.prompts, wanted.max_new_tokens, strict=True)):

            def tell(token: Token, first: int = number * wanted.n) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                    loop.call_soon_threadsafe(self.heard.put_nowait, (first + token.answer, token))

            request = Request(
                wanted.voice.name, ids, longest, tell, n=wanted.n, temperature=wanted.temperature, seed=seed, top=wanted.top
            )  # fmt: skip
            self.requests.append(request)
        try:
            self.engine.submit(*self.requests)
        except Full as full:
            raise Refusal(429, str(full), retry=full.seconds) from None
        except Closed:
            raise Refusal(503, "the server is closing", retry=5) from None
        except ValueError as problem:
            raise Refusal(400, str(problem), param="n") from None

    def leave(self) -> None:
        """Nobody wants what has not been said yet."""
        for request in self.requests:
            self.engine.cancel(request)

    async def __aiter__(self) -> AsyncIterator[tuple[int, str, Token]]:
        """(which answer, the text that is new, the token), until all have ended. Refusal: they were broken off."""
        while any(answer.end is None for answer in self.answers):
            index, token = await self.heard.get()
            self.first = self.first or time.monotonic()
            answer = self.answers[index]
            if answer.end is not None:
                continue  # it has said a stop string; the engine had not heard of it yet
            piece = answer.take(token)
            if answer.end == "error":
                raise Refusal(500, "the model could not go on: the server's log says why", code="engine_error")
            if answer.end == "cancelled":
                raise Refusal(503, "broken off: the server is closing, or the adapter was unloaded", retry=5)
            if answer.end is not None and token.end is None:  # a stop string
                number, row = divmod(index, self.wanted.n)
                self.engine.cancel(self.requests[number], row)
            yield index, piece, token
