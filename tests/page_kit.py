"""A server whose models say what a test has written down for them: the page's side of it without any model."""

import contextlib
import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import httpx
import uvicorn
from kit import bytelevel_tokenizer

from posttrain.serving.api import Server, build
from posttrain.serving.arena import add_arena
from posttrain.serving.counters import Counters
from posttrain.serving.engine import Counts, Engine, Request, Token
from posttrain.serving.guard import Guard
from posttrain.serving.matches import Matches
from posttrain.serving.page import add_page, say_that_a_key_is_needed
from posttrain.serving.votes import Votes
from posttrain.tokens import template

TOKENIZER = bytelevel_tokenizer()


@dataclass
class Actor:
    """A voice of few lines, said in turn."""

    name: str
    lines: list[str]
    limit: int = 2048
    path: str = ""
    base: str | None = None
    tokenizer = TOKENIZER

    def __post_init__(self) -> None:
        self.next = itertools.cycle(self.lines)

    def prompt_ids(self, messages, template_kwargs=None) -> list[int]:
        return template.prompt_ids(TOKENIZER, messages, template_kwargs=template_kwargs)


@dataclass(eq=False)
class Stage:
    """An engine for actors. pause: seconds between two tokens; broken: names of those that fail in the middle."""

    voices: dict[str, Actor]
    pause: float = 0.0
    broken: set[str] = field(default_factory=set)
    full: bool = False
    asked: list[Request] = field(default_factory=list)
    left: list[Request] = field(default_factory=list)

    counts, running, waiting, dead, closing = Counts(), 0, (), False, False

    def submit(self, request: Request) -> None:
        if self.full:
            from posttrain.serving.engine import Full

            raise Full(7)
        self.asked.append(request)
        line = next(self.voices[request.voice].next)
        threading.Thread(target=self._say, args=(request, line), daemon=True).start()

    def _say(self, request: Request, line: str) -> None:
        ids = [*TOKENIZER(line)["input_ids"], TOKENIZER.eos_token_id]
        waiting = threading.Event()
        for number, token in enumerate(ids[: request.max_new_tokens], start=1):
            if self.pause:
                waiting.wait(self.pause)
            if request in self.left or (request.voice in self.broken and number == 3):
                request.tell(Token(0, None, 0.0, [], "cancelled" if request in self.left else "error"))
                return
            end = "stop" if number == len(ids) else "length" if number == request.max_new_tokens else None
            request.tell(Token(0, token, -1.0, [], end))

    def cancel(self, request: Request, answer: int | None = None) -> None:
        self.left.append(request)

    def close(self, **_) -> None:
        pass


def play(lines: dict[str, list[str]], **how) -> Stage:
    return Stage({name: Actor(name, said) for name, said in lines.items()}, **how)


@contextlib.contextmanager
def page_of(engine: Stage | Engine, votes: Path, *, reward=None, key: str | None = None, most_tokens: int = 64):
    """The server around the engine: (what serves it, its matches)."""
    kept = Votes(str(votes))
    try:
        server = Server(engine, engine.voices, most_tokens, Counters(engine))
        matches = Matches(server, kept, reward)
        app = build(server, also=[lambda app: add_arena(app, matches), add_page])
        if key is not None:
            say_that_a_key_is_needed(app)
        yield Guard(app, key=key, max_body=100_000, refused=server.counters.refused), matches
    finally:
        kept.close()


def client(app, **headers) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=headers)


def events(text: str) -> list[dict]:
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]


async def compared(c: httpx.AsyncClient, prompt: str, **fields) -> SimpleNamespace:
    """A match, read to its end: its name, left and right text, how they ended, and all that was sent."""
    answer = await c.post("/arena/match", json={"prompt": prompt, **fields})
    assert answer.status_code == 200, answer.text
    *pieces, last = events(answer.text)
    left, right = ("".join(piece[side] for piece in pieces) for side in ("left", "right"))
    return SimpleNamespace(name=last.get("match"), left=left, right=right, last=last, pieces=pieces, sent=answer.text)


async def voted(c: httpx.AsyncClient, name: str, said: str) -> dict:
    answer = await c.post("/arena/vote", json={"match": name, "vote": said})
    assert answer.status_code == 200, answer.text
    return answer.json()


@contextlib.contextmanager
def listening(app) -> Iterator[str]:
    """On a free port, for a browser: the address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
