"""In front of every request: whose name it was sent to, the key, how large and how slow its body may be. And, on every
answer, what a browser may do with it."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Callable
from typing import Any

from posttrain.serving.refused import Refusal

OPEN = ("/", "/health", "/docs", "/openapi.json")  # without a key; and whatever stands below /static/
LOOPBACK = ("localhost", "127.0.0.1", "::1")
THIS_MACHINE = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?")  # a Host header
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]


class Guard:
    def __init__(
        self, app: Any, *, key: str | None, max_body: int, refused: Callable[[int], None], body_seconds: float = 30.0
    ):
        """key: what `Authorization: Bearer …` must bring; None: nobody is asked, and only this machine's own names are
        answered to (a web page elsewhere could send its visitors' browsers here under its own name).
        refused: told the status of each refusal."""
        self.app, self.max_body, self.refused, self.body_seconds = app, max_body, refused, body_seconds
        self.key = None if key is None else key.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":  # there is none here
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_on(message: Any) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((n, v) for n, v in HEADERS if n not in there)]
            await send(message)

        try:
            self._refuse(scope)
            receive = await self._whole_body(scope, receive)
        except Refusal as refusal:
            self.refused(refusal.status)
            await _answer(refusal, send_on)
            return
        except ConnectionResetError:  # gone before it had said all
            return
        await self.app(scope, receive, send_on)

    def _refuse(self, scope: Any) -> None:
        headers = dict(scope["headers"])
        if self.key is None:
            host = headers.get(b"host", b"").decode("latin-1")
            if not THIS_MACHINE.fullmatch(host.lower()):
                raise Refusal(
                    421, f"without a key this server answers to {', '.join(LOOPBACK)} only, not to {host!r:.80}"
                )
            return
        if scope["path"] in OPEN or scope["path"].startswith("/static/"):
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.key):
            raise Refusal(401, "a key is needed: Authorization: Bearer KEY", code="invalid_api_key")

    async def _whole_body(self, scope: Any, receive: Any) -> Any:
        """The body, read here as far as it may go, and handed on as one piece."""
        if scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
            return receive
        too_large = Refusal(413, f"the body is larger than {self.max_body} bytes (--max-body)")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body:
            raise too_large
        body, more = b"", True
        try:
            async with asyncio.timeout(self.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionResetError
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self.max_body:
                        raise too_large
        except TimeoutError:
            raise Refusal(408, f"the body did not come within {self.body_seconds:g} s") from None
        rest = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return rest.pop() if rest else await receive()

        return again


async def _answer(refusal: Refusal, send: Any) -> None:
    body = refusal.encoded()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    headers |= refusal.headers()
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
