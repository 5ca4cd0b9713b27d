"""Clients that load and unload adapters, without a model: what the engine's thread does is done by a stand-in."""

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

httpx = pytest.importorskip("httpx")
for package in ("fastapi", "prometheus_client"):
    pytest.importorskip(package, reason="pip install -r requirements-serve.txt")

from fastapi import FastAPI  # noqa: E402

from posttrain.errors import UserError  # noqa: E402
from posttrain.serving.adapters import add_adapters  # noqa: E402
from posttrain.serving.api import Server, add_refusals  # noqa: E402
from posttrain.serving.engine import Closed  # noqa: E402

pytestmark = pytest.mark.long


class Voices(dict):
    def load_adapter(self, name, path, *, key):
        if path == "/broken":
            raise UserError(f"{key} {path}: cannot be loaded")
        self[name] = SimpleNamespace(name=name, adapter="tag")
        return ["a remark"]

    def unload_adapter(self, name):
        del self[name]


def said(voices, *asked, closed=False):
    """[(path, body), …] -> [(status, JSON), …]"""

    def between_tokens(do):
        if closed:
            raise Closed
        done = Future()
        try:
            done.set_result(do())
        except Exception as error:
            done.set_exception(error)
        return done

    server = Server(SimpleNamespace(between_tokens=between_tokens), voices, 8, SimpleNamespace(refused=lambda status: None))  # fmt: skip
    app = FastAPI()
    add_refusals(app, server)
    add_adapters(app, server)

    async def go():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            replies = [await client.post(f"/v1/{path}_lora_adapter", json=body) for path, body in asked]
        return [(reply.status_code, reply.json()) for reply in replies]

    return asyncio.run(go())


def base():
    return Voices(base=SimpleNamespace(name="base", adapter=None))


def test_it_comes_and_goes():
    voices = base()
    load = {"lora_name": "nova", "lora_path": "/folder"}
    assert said(voices, ("load", load)) == [(200, {"loaded": "nova", "remarks": ["a remark"]})]
    assert list(voices) == ["base", "nova"]
    assert said(voices, ("unload", {"lora_name": "nova"})) == [(200, {"unloaded": "nova"})]
    assert list(voices) == ["base"]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("load", {"lora_name": "base", "lora_path": "/folder"}, 400, "base is there already"),
        ("load", {"lora_name": "a", "lora_path": "/broken"}, 400, "lora_path /broken: cannot be loaded"),
        ("load", {"lora_name": "a"}, 422, "lora_path: Field required"),
        ("load", {"lora_name": "", "lora_path": "/folder"}, 422, "lora_name"),
        ("unload", {"lora_name": "nobody"}, 404, "no model 'nobody' here"),
        ("unload", {"lora_name": "base"}, 400, "base is a model, not an adapter"),
    ],
)
def test_what_is_refused(path, body, status, says):
    voices = base()
    [(got, reply)] = said(voices, (path, body))
    assert got == status and says in reply["error"]["message"] and list(voices) == ["base"]


def test_while_it_stops():
    assert said(base(), ("load", {"lora_name": "a", "lora_path": "/folder"}), closed=True)[0][0] == 503
