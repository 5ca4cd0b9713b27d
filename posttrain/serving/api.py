"""The HTTP API: OpenAI's chat and completions, one simple way of asking, health, metrics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from posttrain.serving import replies
from posttrain.serving.conversation import Conversation, Wanted
from posttrain.serving.counters import Counters
from posttrain.serving.engine import Engine, Token
from posttrain.serving.fields import AskedChat, AskedCompletion, AskedSimply, OpenAI
from posttrain.serving.refused import ERROR, REFUSALS, Refusal, of_validation
from posttrain.serving.replies import Shape
from posttrain.serving.voices import Voice, Voices

Made = TypeVar("Made")


@dataclass
class Server:
    """What the routes share."""

    engine: Engine
    voices: Voices
    max_new_tokens: int  # of an answer whose request names no limit
    counters: Counters
    reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "reader"))

    async def reading(self, do: Callable[[], Made]) -> Made:
        """Where text becomes ids: in a thread of its own, since a long text takes seconds in which the others are to be
        answered; and one text at a time, since a tokenizer is told before each whether special tokens are split."""
        return await asyncio.get_running_loop().run_in_executor(self.reader, do)

    def voice(self, name: str | None) -> Voice:
        if name is None:
            return next(iter(self.voices.values()))
        if (voice := self.voices.get(name)) is None:
            there = ", ".join(self.voices)
            raise Refusal(404, f"no model {name!r:.200} here, only {there:.500}", param="model", code="model_not_found")
        return voice

    def room(self, voice: Voice, ids: list[int], asked: int | None, param: str) -> int:
        """How long the answer may get."""
        left = voice.limit - len(ids)
        if left < 1 or (asked or 1) > left:
            wanted = f" and {asked} of the answer" if asked else ""
            raise Refusal(
                400, f"{len(ids)} tokens of the prompt{wanted} are more than the {voice.limit} that {voice.name} is served with",
                param=param, code="context_length_exceeded",
            )  # fmt: skip
        return asked or min(self.max_new_tokens, left)

    def chat_ids(self, voice: Voice, messages: list[dict], template_kwargs: dict | None = None) -> list[int]:
        """Within reading()."""
        try:
            return voice.prompt_ids(messages, template_kwargs)
        except ValueError as problem:  # a UserError, too
            raise Refusal(400, str(problem), param="messages") from None


def build(server: Server, *, also: Iterable[Callable[[FastAPI], None]] = ()) -> FastAPI:
    """also: what adds more routes (the page's, those that load adapters)."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.engine.close)

    app = FastAPI(
        title="posttrain.serve", version="1", lifespan=lifespan, docs_url=None, redoc_url=None,
        description="The models of this server, asked as OpenAI's are, or simply (/v1/generate).",
    )  # fmt: skip
    add_refusals(app, server)
    add_asking(app, server)
    add_around(app, server)
    for add in also:
        add(app)
    described = app.openapi()  # made once, with the shape of a refusal in it
    described["components"]["schemas"]["Error"] = ERROR
    return app


# ---------------------------------------------------------------- refusals


def add_refusals(app: FastAPI, server: Server) -> None:
    def refused(refusal: Refusal) -> JSONResponse:
        server.counters.refused(refusal.status)
        return JSONResponse(refusal.body(), refusal.status, refusal.headers())

    @app.exception_handler(Refusal)
    async def of_ours(request: Request, problem: Refusal) -> JSONResponse:
        return refused(problem)

    @app.exception_handler(RequestValidationError)
    async def of_a_field(request: Request, problem: RequestValidationError) -> JSONResponse:
        return refused(of_validation(list(problem.errors())))

    @app.exception_handler(HTTPException)
    async def of_a_path(request: Request, problem: HTTPException) -> JSONResponse:
        what = {404: f"no such path: {request.url.path:.200}", 405: f"{request.method} is not possible here"}
        return refused(Refusal(problem.status_code, what.get(problem.status_code, str(problem.detail))))

    @app.exception_handler(Exception)
    async def of_us(request: Request, problem: Exception) -> JSONResponse:
        return refused(Refusal(500, "an error of this server: its log says more"))


# ---------------------------------------------------------------- asking


def add_asking(app: FastAPI, server: Server) -> None:
    @app.post("/v1/chat/completions", responses=REFUSALS, tags=["OpenAI"], response_model=None)
    async def chat(asked: AskedChat, request: Request) -> Response:
        """An answer to a conversation, through the model's chat template. What a message spells of special tokens stays
        text."""
        voice = server.voice(asked.model)
        messages = [message.plain() for message in asked.messages]
        ids = await server.reading(lambda: server.chat_ids(voice, messages, asked.chat_template_kwargs))
        longest = server.room(voice, ids, asked.longest, "messages")
        wanted = _wanted(voice, [ids], [longest], asked, asked.top_logprobs or 0)
        shape = Shape(True, voice.name, voice.tokenizer, bool(asked.logprobs), wanted.top, asked.return_token_ids)
        return await answered(server, wanted, shape, asked, request)

    @app.post("/v1/completions", responses=REFUSALS, tags=["OpenAI"], response_model=None)
    async def complete(asked: AskedCompletion, request: Request) -> Response:
        """What follows a text (or ids), which is taken as it is: no chat template, special tokens in it are tokens."""
        voice = server.voice(asked.model)
        prompts = await server.reading(
            lambda: [voice.tokenizer(p)["input_ids"] if isinstance(p, str) else p for p in asked.prompts]
        )
        for ids in prompts:
            if not ids or max(ids) >= voice.vocabulary:
                raise Refusal(400, f"a prompt needs ids from 0 to {voice.vocabulary - 1}, at least one", param="prompt")
        lengths = [server.room(voice, ids, asked.max_tokens, "prompt") for ids in prompts]
        wanted = _wanted(voice, prompts, lengths, asked, asked.logprobs or 0)
        shape = Shape(
            False, voice.name, voice.tokenizer, asked.logprobs is not None, wanted.top, asked.return_token_ids
        )
        return await answered(server, wanted, shape, asked, request)

    @app.post("/v1/generate", responses=REFUSALS, tags=["simple"], response_model=None)
    async def generate(asked: AskedSimply, request: Request) -> Response:
        """What the model answers to a user who says this."""
        voice = server.voice(asked.model)
        ids = await server.reading(lambda: server.chat_ids(voice, [{"role": "user", "content": asked.prompt}]))
        longest = server.room(voice, ids, asked.max_new_tokens, "prompt")
        wanted = Wanted(voice, [ids], [longest], temperature=asked.temperature, seed=asked.seed)
        conversation = await heard(server, wanted, request)
        answer = conversation.answers[0]
        said = {"text": answer.text, "finish_reason": answer.end, "model": voice.name}
        return JSONResponse(said | {"usage": replies.usage([answer], [ids])})


def _wanted(voice: Voice, prompts: list[list[int]], lengths: list[int], asked: OpenAI, top: int) -> Wanted:
    return Wanted(voice, prompts, lengths, asked.n, asked.temperature, asked.seed, top, asked.stops)


async def answered(server: Server, wanted: Wanted, shape: Shape, asked: OpenAI, request: Request) -> Response:
    if not asked.stream:
        conversation = await heard(server, wanted, request)
        return JSONResponse(shape.whole(conversation.answers, wanted.prompts))
    conversation = Conversation(server.engine, wanted)
    conversation.begin()  # refused, where it is, before a status is sent
    usage = asked.stream_options is not None and asked.stream_options.include_usage
    return Streamed(streamed(server, conversation, shape, usage), conversation)


class Streamed(StreamingResponse):
    """Events; and however it ends, also before the first of them, the engine is told."""

    def __init__(self, events: AsyncIterator[str], conversation: Conversation):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy is not to collect them
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.conversation = conversation

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.conversation.leave()


async def heard(server: Server, wanted: Wanted, request: Request) -> Conversation:
    """All of it. Refusal: broken off, or the client has left."""
    conversation = Conversation(server.engine, wanted)
    conversation.begin()

    async def listen() -> None:
        async for _ in conversation:
            pass

    listening, leaving = asyncio.create_task(listen()), asyncio.create_task(gone(request))
    try:
        await asyncio.wait({listening, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            raise Refusal(499, "the client has left")
        listening.result()
    finally:
        conversation.leave()
        listening.cancel()
        leaving.cancel()
    server.counters.answered(conversation)
    return conversation


async def gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def streamed(server: Server, conversation: Conversation, shape: Shape, usage: bool) -> AsyncIterator[str]:
    if shape.chat:
        for index in range(len(conversation.answers)):
            yield shape.piece(index, "", [], None, first=True)
    silent: list[list[Token]] = [[] for _ in conversation.answers]  # tokens that have shown no text yet
    try:
        async for index, text, token in conversation:
            silent[index].append(token)
            end = conversation.answers[index].end
            if text or end is not None:
                yield shape.piece(index, text, silent[index], end)
                silent[index] = []
    except Refusal as refusal:  # the status has been sent: said as an event
        server.counters.refused(refusal.status)
        yield replies.event(refusal.body())
        return
    if usage:
        yield shape.last(conversation.answers, conversation.wanted.prompts)
    server.counters.answered(conversation)
    yield replies.DONE


# ---------------------------------------------------------------- around it


def add_around(app: FastAPI, server: Server) -> None:
    @app.get("/v1/models", tags=["OpenAI"])
    async def models() -> dict[str, Any]:
        """The models and the adapters on them, by name."""
        of = [
            {"id": v.name, "object": "model", "created": server.counters.started, "owned_by": "posttrain", "root": v.path, "parent": v.base, "max_model_len": v.limit}
            for v in list(server.voices.values())
        ]  # fmt: skip
        return {"object": "list", "data": of}

    @app.get("/health", tags=["around"], responses={503: {"description": "the model cannot go on"}})
    async def health() -> JSONResponse:
        """Answers at once, also while answers are being written."""
        status = "dead" if server.engine.dead else "closing" if server.engine.closing else "ok"
        about = {"status": status, "running": server.engine.running, "waiting": len(server.engine.waiting)}
        return JSONResponse(about, 200 if status == "ok" else 503)

    @app.get("/metrics", tags=["around"], response_class=Response)
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(server.counters.text(), media_type=server.counters.media_type)
