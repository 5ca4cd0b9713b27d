"""Put together and run: models, engine, API, guard, uvicorn."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys

import uvicorn

from posttrain.errors import UserError
from posttrain.serving.adapters import add_adapters
from posttrain.serving.api import Server, build
from posttrain.serving.arena import add_arena
from posttrain.serving.counters import Counters
from posttrain.serving.engine import Engine
from posttrain.serving.guard import Guard
from posttrain.serving.matches import Matches, reward_named
from posttrain.serving.page import add_page, say_that_a_key_is_needed
from posttrain.serving.voices import load_all
from posttrain.serving.votes import Votes


def serve(options: argparse.Namespace, key: str | None) -> None:
    """Until it is told to stop."""
    listening = _listen(options.host, options.port)  # before minutes of loading
    with contextlib.closing(listening), contextlib.closing(Votes(options.votes)) as votes:
        reward = None if options.reward is None else reward_named(options.reward)
        voices, lines = load_all(
            options.model, options.adapter, device=options.device, dtype=options.dtype, max_length=options.max_length
        )
        for line in lines:
            print(line, file=sys.stderr)
        engine = Engine(voices, max_rows=options.max_rows, max_waiting=options.max_waiting)
        server = Server(engine, voices, options.max_new_tokens, Counters(engine))
        matches = Matches(server, votes, reward)
        also = [lambda app: add_arena(app, matches), add_page]
        if options.allow_adapters:
            also.append(lambda app: add_adapters(app, server))
        app = build(server, also=also)
        if key is not None:
            say_that_a_key_is_needed(app)
        guarded = Guard(app, key=key, max_body=options.max_body, refused=server.counters.refused)
        settings = uvicorn.Config(
            guarded, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=30,
            timeout_graceful_shutdown=int(options.grace) + 5, h11_max_incomplete_event_size=64 * 1024, lifespan="on",
        )  # fmt: skip
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        stoppable = Stoppable(settings, engine, options.grace)
        stoppable.said = f"serving {', '.join(voices)} on http://{shown}:{port} (Ctrl-C stops it)"
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn takes them later, and raises them once more at its end
            signal.signal(number, stoppable.handle_exit)
        stoppable.run(sockets=[listening])
        if engine.dead and not engine.closing:
            raise UserError("the engine has stopped: see above")


class Stoppable(uvicorn.Server):
    """When it stops, the engine takes no more at once, and what runs has its time to end."""

    def __init__(self, config: uvicorn.Config, engine: Engine, grace: float):
        super().__init__(config)
        self.engine, self.grace, self.said = engine, grace, ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.said, flush=True)  # who reads it can ask, and stop it

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(asyncio.to_thread(self.engine.close, finish=self.grace))
        await super().shutdown(sockets)
        await ending


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, UnicodeError) as error:  # of a host that is no name: "a..b"
        listening.close()
        why = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: {why}: name another --port") from None
    listening.set_inheritable(False)
    return listening
