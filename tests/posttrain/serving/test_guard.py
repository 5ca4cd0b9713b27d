"""In front of every request, without a framework."""

import asyncio
import json

import pytest

from posttrain.serving.guard import Guard


def call(guard, path="/v1/models", method="GET", headers=None, body=(b"",), wait=0.0):
    """-> (status, headers, body that came back, what the app has read)"""
    sent, chunks = [], list(body)
    raw = [(k.lower().encode(), v.encode()) for k, v in ({"host": "localhost"} | (headers or {})).items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}

    async def receive():
        await asyncio.sleep(wait)
        if not chunks:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    if not sent:
        return None
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def guard(**settings):
    async def app(scope, receive, send):
        message = await receive() if scope["method"] == "POST" else {"body": b""}
        assert not message.get("more_body")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})

    refused = []
    made = Guard(app, **{"key": None, "max_body": 10, "refused": refused.append} | settings)
    made.counted = refused
    return made


def test_the_body_is_handed_on_whole():
    assert call(guard(), method="POST", body=(b"abc", b"def", b""))[2] == b"abcdef"
    assert call(guard(), method="POST", body=(b"0123456789",))[0] == 200


@pytest.mark.parametrize(
    "how", [{"body": (b"012345", b"67890")}, {"headers": {"content-length": "11"}}, {"body": (b"x" * 99,)}]
)
def test_too_large(how):
    one = guard()
    status, headers, body = call(one, method="POST", **how)
    assert status == 413 and "10 bytes" in json.loads(body)["error"]["message"] and headers[b"connection"] == b"close"
    assert one.counted == [413]


def test_too_slow():
    assert call(guard(body_seconds=0.05), method="POST", body=(b"a", b"b"), wait=0.2)[0] == 408


def test_gone_before_it_had_said_all():
    assert call(guard(), method="POST", body=()) is None


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("Bearer secret", 200),
        ("bearer secret", 200),
        ("Bearer  secret ", 200),
        ("Bearer secret2", 401),
        ("Bearer secre", 401),
        ("Basic secret", 401),
        ("secret", 401),
        ("", 401),
        ("Bearer s\u00e9cret", 401),
    ],
)
def test_the_key(given, status):
    headers = {"authorization": given} if given else {}
    got = call(guard(key="secret"), headers=headers)
    assert got[0] == status
    if status == 401:
        assert got[1][b"www-authenticate"] == b"Bearer" and "secret" not in got[2].decode()


def test_what_needs_no_key():
    for path in ("/", "/health", "/docs", "/openapi.json", "/static/page.js"):
        assert call(guard(key="secret"), path=path)[0] == 200
    for path in ("/v1/models", "/metrics", "//health", "/health/", "/v1/../health", "/static", "/arena/vote"):
        assert call(guard(key="secret"), path=path)[0] == 401
    assert call(guard(key="secret"), headers={"host": "anything.example", "authorization": "Bearer secret"})[0] == 200


@pytest.mark.parametrize(("host", "status"), [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 421), ("localhost.evil.example", 421), ("LOCALHOST", 200), ("evil@localhost", 421), ("localhost/evil", 421), ("[", 421), ("[::1", 421), ("::1", 421), ("", 421)])  # fmt: skip
def test_without_a_key_only_this_machines_names(host, status):
    assert call(guard(), headers={"host": host})[0] == status


def test_what_a_browser_is_told():
    headers = call(guard())[1]
    assert headers[b"x-content-type-options"] == b"nosniff" and headers[b"x-frame-options"] == b"DENY"


def test_no_websocket():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(guard(key="secret")({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close"}]
