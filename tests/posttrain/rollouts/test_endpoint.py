"""A server that is busy, broken, strange or gone."""

import socket
import threading
import time

import pytest

from posttrain.errors import UserError
from posttrain.rollouts.endpoint import Endpoint, Pace, Refused, Stopped, _seconds

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def test_what_is_sent_and_where(serving, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("POSTTRAIN_API_KEY", " secret\n")
    with serving(lambda n, body: "Hello.") as (server, url):
        for address in (url, f"{url}/", f"{url}/chat/completions"):
            assert Endpoint(address).ask(BODY)["choices"][0]["message"]["content"] == "Hello."
    assert server.paths == ["/v1/chat/completions"] * 3 and server.asked[0] == BODY
    assert server.headers[0]["Authorization"] == "Bearer secret"
    monkeypatch.delenv("POSTTRAIN_API_KEY")
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(lambda n, body: "Hello.") as (server, url):
        Endpoint(url).ask(BODY)
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("first", "waits"),
    [
        ((429, {"Retry-After": "0.3"}, b"slow down"), 0.3),  # longer than the 0.01 s of its own
        ((503, {}, b""), 0.01),
        ((200, {}, b"<html>"), 0.01),
        ((200, {}, b'{"error": "none"}'), 0.01),
        ((200, {"Content-Length": "999"}, b"{"), 0.01),  # breaks off
    ],
    ids=["429", "503", "no JSON", "no choices", "breaks off"],
)
def test_what_may_be_over_the_next_time_is_tried_again(serving, first, waits):
    with serving(lambda n, body: first if n == 0 else "Hello.") as (server, url):
        assert Endpoint(url, first_wait=0.01, timeout=1).ask(BODY)["choices"]
    assert len(server.asked) == 2 and server.times[1] - server.times[0] >= waits


def test_waits_grow_and_end(serving):
    with (
        serving(lambda n, body: (500, {}, b"out of memory")) as (server, url),
        pytest.raises(UserError, match="answers 500 Internal Server Error: out of memory, after 4 tries"),
    ):
        Endpoint(url, first_wait=0.05, retries=3).ask(BODY)
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert all(gap >= wait for gap, wait in zip(gaps, (0.05, 0.1, 0.2), strict=True))
    with (
        serving(lambda n, body: (429, {"Retry-After": "86400"}, b"")) as (server, url),
        pytest.raises(UserError, match="asks for 86400 seconds of patience"),
    ):
        Endpoint(url).ask(BODY)
    assert len(server.asked) == 1


def test_what_stops_at_once(serving, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    for status, message in (
        (401, r"answers 401 Unauthorized: no \(the key: OPENAI_API_KEY\)"),
        (404, "answers 404 Not Found: no"),
        (302, "302"),
    ):
        with (
            serving(lambda n, body, s=status: (s, {"Location": "http://127.0.0.1:9/"}, b"no")) as (server, url),
            pytest.raises(UserError, match=message) as told,
        ):
            Endpoint(url).ask(BODY)
        assert len(server.asked) == 1 and "secret" not in str(told.value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=r"nobody listens there \(connection refused\)"):
        Endpoint(f"http://127.0.0.1:{port}/v1").ask(BODY)
    with pytest.raises(UserError, match="--url localhost:8000: expected the address of a server"):
        Endpoint("localhost:8000")


def test_what_is_wrong_with_one_prompt(serving):
    with (
        serving(lambda n, body: (400, {}, b"too long")) as (server, url),
        pytest.raises(Refused, match="400 Bad Request: too long"),
    ):
        Endpoint(url).ask(BODY)
    assert len(server.asked) == 1


def test_requests_per_minute(serving):
    """600 a minute: one every 0.1 s, over all threads."""
    with serving(lambda n, body: "Hello.") as (server, url):
        endpoint = Endpoint(url, requests_per_minute=600)
        threads = [threading.Thread(target=endpoint.ask, args=(BODY,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.times) == 4 and max(server.times) - min(server.times) >= 0.25


def test_whoever_waits_gives_up_when_the_run_is_over():
    pace = Pace(None)
    pace.pause(60)
    threading.Timer(0.05, pace.over.set).start()
    start = time.monotonic()
    with pytest.raises(Stopped):
        pace.wait()
    assert time.monotonic() - start < 5


def test_retry_after():
    assert [_seconds(x) for x in (None, "", "3", "-1", "soon", "Wed, 21 Oct 2015 07:28:00 GMT")] == [
        None,
        None,
        3,
        0,
        None,
        0,
    ]
    assert _seconds("Wed, 21 Oct 2065 07:28:00 GMT") > 1e9
