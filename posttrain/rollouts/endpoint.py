"""A server that speaks OpenAI's chat/completions, asked with the standard library: one request, retried and paced.

    429, 5xx, time-out, broken connection, no JSON    tried again, later each time, or when Retry-After says; then the
                                                      run stops
    400, 413, 422                                     about this prompt: counted, the run goes on
    anything else (401, 404, nobody listens)          the run stops at once

The key stands in the environment (POSTTRAIN_API_KEY, else OPENAI_API_KEY), never in a file or a message.
"""

from __future__ import annotations

import datetime
import email.utils
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from posttrain.errors import UserError, reason

KEYS = ("POSTTRAIN_API_KEY", "OPENAI_API_KEY")
OF_ONE_PROMPT = (400, 413, 422)
LONGEST_WAIT = 600.0  # seconds that a server may ask for


class Refused(Exception):
    """The server will not answer this prompt."""


class Passing(Exception):
    """What may be over the next time."""

    def __init__(self, what: str, wait: float | None = None):
        super().__init__(what)
        self.wait = wait


class Stopped(Exception):
    """Another thread has ended the run."""


class Pace:
    """No more than so many requests a minute, over all threads; and none before the server wants one again."""

    def __init__(self, per_minute: float | None):
        self.gap = 60 / per_minute if per_minute else 0.0
        self.next, self.lock = 0.0, threading.Lock()
        self.over = threading.Event()  # whoever waits is to give up

    def wait(self) -> None:
        with self.lock:
            start = max(self.next, time.monotonic())
            self.next = start + self.gap
        if self.over.wait(max(0.0, start - time.monotonic())):
            raise Stopped

    def pause(self, seconds: float) -> None:
        with self.lock:
            self.next = max(self.next, time.monotonic() + seconds)


class Endpoint:
    def __init__(
        self, url: str, *, requests_per_minute: float | None = None, retries: int = 6, timeout: float = 120.0, first_wait: float = 1.0
    ):  # fmt: skip
        """first_wait: seconds before the first try again; twice as long before each one after it."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(f"--url {url}: expected the address of a server, such as http://localhost:8000/v1")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        self.url = urllib.parse.urlunsplit((parts.scheme, parts.netloc, f"{path}/chat/completions", parts.query, ""))
        self.pace = Pace(requests_per_minute)
        self.retries, self.timeout, self.first_wait = retries, timeout, first_wait
        self.key_from = next((name for name in KEYS if os.environ.get(name)), None)
        self.opener = urllib.request.build_opener(_NoRedirect)  # a key is for the host that was named

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """One request -> the parsed answer. Refused: of this prompt; UserError: the run cannot go on."""
        for number in range(self.retries + 1):
            self.pace.wait()
            try:
                return self._once(body)
            except Passing as problem:
                if number == self.retries:
                    tries = f"{number + 1} tries" if number else "one try"
                    raise UserError(f"{self.url}: {problem}, after {tries}") from None
                wait = min(60.0, self.first_wait * 2**number) if problem.wait is None else problem.wait
                if wait > LONGEST_WAIT:
                    raise UserError(f"{self.url}: {problem}, and asks for {wait:.0f} seconds of patience") from None
                self.pace.pause(wait)
        raise AssertionError("the last try returns or raises")

    def _once(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "User-Agent": "posttrain"}
        if self.key_from is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.key_from].strip()}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        try:
            with self.opener.open(request, timeout=self.timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise self._of_status(error) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):
                raise UserError(f"{self.url}: nobody listens there (connection refused)") from None
            raise Passing(f"cannot be reached ({reason(error)})") from None
        except (OSError, http.client.HTTPException) as error:  # a time-out or an end in the middle of the answer
            raise Passing(f"broke off ({type(error).__name__})") from None
        try:
            found = json.loads(text)
        except ValueError:
            raise Passing(f"answered with what is no JSON: {text[:80]!r}") from None
        if not isinstance(found, dict) or not found.get("choices"):
            raise Passing(f"answered without 'choices': {text[:80]!r}")
        return found

    def _of_status(self, error: urllib.error.HTTPError) -> Exception:
        said = " ".join(error.read(2000).decode(errors="replace").split())[:200]
        what = f"{error.code} {error.reason}{f': {said}' if said else ''}"
        if error.code == 429 or error.code >= 500:
            return Passing(f"answers {what}", _seconds(error.headers.get("Retry-After")))
        if error.code in OF_ONE_PROMPT:
            return Refused(what)
        advice = "" if error.code not in (401, 403) else f" (the key: {self.key_from or f'set {KEYS[0]}'})"
        return UserError(f"{self.url}: answers {what}{advice}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After: seconds, or a date.

    >>> _seconds("2"), _seconds("soon"), _seconds("Wed, 21 Oct 2015 07:28:00 GMT")
    (2.0, None, 0.0)
    """
    if not retry_after:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (until.astimezone(datetime.UTC) - datetime.datetime.now(datetime.UTC)).total_seconds())
