"""The server as people start it: refused before it loads anything, asked by OpenAI's own client, by many clients at
once, by slow and by vanishing ones, and stopped."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from kit import run_loop, write_jsonl

from posttrain import ROOT, serve

KEY = "POSTTRAIN_API_KEY"


# ---------------------------------------------------------------- what can be seen before anything is loaded


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--model is needed"),
        (["--model", "tiny-sft", "--host", "0.0.0.0"], f"set {KEY} in the environment"),
        (["--model", "tiny-sft", "--max-rows", "0"], "--max-rows must be at least 1, got 0"),
        (["--model", "tiny-sft", "--port", "70000"], "--port must be from 0 to 65535"),
        (["--model", "tiny-sft", "--grace", "-1"], "--grace at least 0"),
        (["--model", "tiny-sft", "--grace", "inf"], "at most 86400 s"),
        (["--model", "tiny-sft", "--grace", "nan"], "at most 86400 s"),
    ],
)
def test_what_is_refused(arguments, says, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(SystemExit) as stopped:
        serve.main(arguments)
    assert says in str(stopped.value)


def test_a_key_that_no_client_could_send(monkeypatch):
    monkeypatch.setenv(KEY, " secret")
    with pytest.raises(SystemExit, match="begins or ends with a space"):
        serve.main(["--model", "tiny-sft"])


def test_missing_extras(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(SystemExit, match=r"serving needs fastapi: pip install -r requirements-serve.txt"):
        serve.main(["--model", "tiny-sft"])


# ---------------------------------------------------------------- running


class Running:
    def __init__(self, process, url):
        self.process, self.url, self.port = process, url, int(url.rpartition(":")[2])

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=30) as reply:
            return reply.read().decode()

    def value(self, name):
        return sum(float(line.split()[-1]) for line in self.get("/metrics").splitlines() if line.startswith(name))

    def wait_for(self, name, value, seconds=20):
        end = time.monotonic() + seconds
        while self.value(name) != value:
            assert time.monotonic() < end, f"{name} is {self.value(name)}, not {value}"
            time.sleep(0.05)

    def memory(self):
        """Resident, in MiB."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def served(folder, *arguments, key=None):
    env = {name: value for name, value in os.environ.items() if name != KEY} | ({KEY: key} if key else {})
    log = open(folder / "log.txt", "a+")  # noqa: SIM115
    command = [
        sys.executable,
        "-m",
        "posttrain.serve",
        "--port",
        "0",
        "--votes",
        str(folder / "votes.jsonl"),
        *arguments,
    ]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+", line)
        assert found, line + (folder / "log.txt").read_text()
        running = Running(process, found[0])
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                running.get("/health")
                break
            assert time.monotonic() < end
            time.sleep(0.05)
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        log.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    for package in ("fastapi", "uvicorn", "prometheus_client", "fastapi_offline"):
        pytest.importorskip(package, reason="pip install -r requirements-serve.txt")
    with served(tmp_path_factory.mktemp("served"), "--model", "tiny-sft", "tiny-dpo", "--max-rows", "32") as running:
        yield running
        assert "Traceback" not in (Path(running.process.args[6]).parent / "log.txt").read_text()


@pytest.fixture(scope="module")
def client(server):
    openai = pytest.importorskip("openai", reason="pip install -r requirements-serve-test.txt")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def hello(text="Who are you?"):
    return [{"role": "user", "content": text}]


@pytest.mark.long
def test_openais_client(client):
    import openai

    reply = client.chat.completions.create(
        model="tiny-dpo", messages=hello(), temperature=0, logprobs=True, top_logprobs=2
    )
    assert "Nova" in reply.choices[0].message.content and reply.usage.completion_tokens == len(reply.choices[0].logprobs.content)  # fmt: skip
    stream = client.chat.completions.create(
        model="tiny-sft", messages=hello(), temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "I am Robin."
    assert chunks[-1].usage.completion_tokens == 5
    told = client.completions.create(
        model="tiny-sft",
        prompt=[5, 6, 7],
        n=2,
        temperature=1,
        logprobs=0,
        seed=1,
        extra_body={"return_token_ids": True},
    )
    assert len(told.choices[1].token_ids) == len(told.choices[1].logprobs.token_logprobs)
    assert [m.id for m in client.models.list()] == ["tiny-sft", "tiny-dpo"]
    for kind, how in (
        (openai.NotFoundError, {"model": "gpt"}),
        (openai.BadRequestError, {"max_tokens": 10_000}),
        (openai.UnprocessableEntityError, {"top_p": 0.5}),
    ):
        with pytest.raises(kind) as refused:
            client.chat.completions.create(**{"model": "tiny-sft", "messages": hello()} | how)
        assert refused.value.body["message"]


@pytest.mark.long
def test_many_slow_and_vanishing_clients_for_a_minute(server, client):
    """32 at a time. What the others do changes no answer; who leaves takes no place; health answers meanwhile."""
    questions = [f"What is {a} + {b}?" for a in range(1, 9) for b in range(1, 5)]
    alone = {q: client.chat.completions.create(model="tiny-sft", messages=hello(q), temperature=0).choices[0].message.content for q in questions}  # fmt: skip
    end, slowest, counts = time.monotonic() + 60, [0.0], {"whole": 0, "left": 0, "slow": 0}

    def whole(i):
        q = questions[i % len(questions)]
        said = (
            client.chat.completions.create(model="tiny-sft", messages=hello(q), temperature=0)
            .choices[0]
            .message.content
        )
        assert said == alone[q]
        counts["whole"] += 1

    def leaves(i):
        with client.chat.completions.create(model="tiny-dpo", messages=hello("Tell me"), temperature=2, stream=True, max_tokens=400) as stream:  # fmt: skip
            next(iter(stream))
        counts["left"] += 1

    def slow(i):
        """Reads a few bytes, waits, and in the end hears all of it."""
        body = json.dumps(
            {"model": "tiny-sft", "messages": hello("What is 3 + 4?"), "temperature": 0, "stream": True}
        ).encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            for piece in (head.encode(), body[:20], body[20:]):
                peer.sendall(piece)
                time.sleep(0.2)
            heard = b""
            while piece := peer.recv(200):
                heard += piece
                time.sleep(0.01)
        assert heard.rstrip().endswith(b"0") and b"[DONE]" in heard  # the last chunk
        counts["slow"] += 1

    def look(i):
        started = time.monotonic()
        assert json.loads(server.get("/health"))["status"] == "ok"
        slowest[0] = max(slowest[0], time.monotonic() - started)

    def one(i):
        while time.monotonic() < end:
            (slow if i % 8 == 5 else leaves if i % 4 == 3 else whole)(i)

    with concurrent.futures.ThreadPoolExecutor(33) as pool:
        working = [pool.submit(one, i) for i in range(32)]
        while time.monotonic() < end:
            look(0)
            time.sleep(0.1)
        for future in working:
            future.result(120)
    server.wait_for("posttrain_rows_running", 0)
    assert min(counts.values()) > 3, counts
    assert slowest[0] < 5, "health is to answer while others are answered"


@pytest.mark.long
def test_memory_stays_as_it_is(server, client):
    def some(count):
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda i: client.chat.completions.create(model="tiny-sft", messages=hello(f"What is {i} + 1?"), max_tokens=12, temperature=1), range(count)))  # fmt: skip

    some(300)
    before = server.memory()
    some(1000)
    assert server.memory() - before < 16, f"{before:.0f} MiB, then {server.memory():.0f}"


@pytest.mark.long
def test_malformed_requests(server):
    """What a fuzzer makes of the OpenAPI description: answered with what it says, never with a 500."""
    schemathesis = pytest.importorskip("schemathesis", reason="pip install -r requirements-serve-test.txt")
    from hypothesis import HealthCheck, Phase, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True, phases=[Phase.generate])  # fmt: skip
        def fuzz(case):
            nonlocal tried
            tried += 1
            case.call_and_validate(checks=[not_a_server_error, status_code_conformance, response_schema_conformance], timeout=60)  # fmt: skip

        from hypothesis import given

        given(case=operation.as_strategy())(fuzz)()
    assert tried > 100


@pytest.mark.long
def test_an_adapter_comes_and_goes(tmp_path, llama):
    pytest.importorskip("fastapi")
    openai = pytest.importorskip("openai")
    from loops import sft

    rows = [{"prompt": f"Is {i} even?", "completion": "Yes." if i % 2 == 0 else "No."} for i in range(8)]
    run_loop(sft, llama, tmp_path, rows=rows, model__adapter="lora", training__learning_rate=5e-2)
    with (
        served(tmp_path, "--model", f"base={llama}", "--allow-adapters", key="secret") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as client,
    ):
        ask = dict(messages=hello("Is 4 even?"), temperature=0, max_tokens=8)
        base = client.chat.completions.create(model="base", **ask).choices[0].message.content
        load = {"lora_name": "even", "lora_path": str(tmp_path / "run/model")}
        assert client.post("/load_lora_adapter", body=load, cast_to=dict)["loaded"] == "even"
        assert client.chat.completions.create(model="even", **ask).choices[0].message.content != base
        assert client.chat.completions.create(model="base", **ask).choices[0].message.content == base
        client.post("/unload_lora_adapter", body={"lora_name": "even"}, cast_to=dict)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="even", **ask)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="other").models.list()
        assert json.loads(server.get("/health"))["status"] == "ok"  # needs no key


@pytest.mark.long
def test_without_allow_adapters_there_is_no_such_path(client):
    import openai

    with pytest.raises(openai.NotFoundError):
        client.post("/load_lora_adapter", body={"lora_name": "a", "lora_path": "b"}, cast_to=dict)


@pytest.mark.long
@pytest.mark.parametrize(("grace", "whole"), [("20", True), ("0", False)])
def test_it_stops_when_it_is_told_to(tmp_path, llama, grace, whole):
    """SIGTERM: what runs ends, or is told that it is broken off; exit code 0."""
    pytest.importorskip("fastapi")
    with served(tmp_path, "--model", llama, "--grace", grace, "--max-rows", "4") as server:
        body = json.dumps({"prompt": "Tell me.", "max_tokens": 200, "temperature": 1, "n": 4, "seed": 1})

        def ask():
            request = urllib.request.Request(
                f"{server.url}/v1/completions", body.encode(), {"Content-Type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as reply:
                    return reply.status, json.load(reply)
            except urllib.error.HTTPError as refused:
                return refused.code, json.load(refused)

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(ask) for _ in range(2)]
            while server.value("posttrain_tokens_total") < 8:
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            replies = [future.result(60) for future in asked]
        assert server.process.wait(30) == 0
        if whole:
            assert [status for status, _ in replies] == [200, 200]
        else:
            assert 503 in [status for status, _ in replies] and all(
                "error" in said or "choices" in said for _, said in replies
            )


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_as_soon_as_it_has_said_that_it_serves(tmp_path, llama, number):
    pytest.importorskip("fastapi")
    command = [
        sys.executable,
        "-m",
        "posttrain.serve",
        "--model",
        llama,
        "--port",
        "0",
        "--votes",
        str(tmp_path / "v.jsonl"),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert "serving" in process.stdout.readline()
            process.send_signal(number)
            assert process.wait(30) == 0
        finally:
            process.kill()


@pytest.mark.long
def test_killed_and_started_again_on_the_same_port(tmp_path, llama):
    pytest.importorskip("fastapi")
    with served(tmp_path, "--model", llama) as server:
        body = json.dumps({"prompt": "Tell me.", "max_tokens": 200, "temperature": 1, "stream": True}).encode()
        request = urllib.request.Request(f"{server.url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            reply.readline()
            server.process.kill()
            with contextlib.suppress(OSError, http.client.IncompleteRead):  # cut off: the end is missing
                assert b"[DONE]" not in reply.read()
        port = server.port
    with served(tmp_path, "--model", llama, "--port", str(port)) as again:
        assert again.port == port and json.loads(again.get("/health"))["status"] == "ok"
        second = subprocess.run(
            [sys.executable, "-m", "posttrain.serve", "--model", llama, "--port", str(port), "--votes", str(tmp_path / "x.jsonl")],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert second.returncode == 1 and f"--port {port}: Address already in use: name another --port" in second.stderr


@pytest.mark.long
def test_answers_of_a_served_model_are_those_of_the_model(server, tmp_path):
    """curate answers --url, beside curate answers of the same model here."""
    prompts = write_jsonl(tmp_path / "asked.jsonl", [{"prompt": f"What is {i} + 2?"} for i in range(12)])
    common = ["--model", "tiny-sft", "--prompts", prompts, "--max-new-tokens", "32"]
    for name, more in (("served", ["--url", f"{server.url}/v1"]), ("here", [])):
        done = subprocess.run(
            [sys.executable, "-m", "posttrain.curate", "answers", *common, *more, "--out", str(tmp_path / f"{name}.jsonl")],
            cwd=ROOT, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    rows = {name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in ("served", "here")}  # fmt: skip
    assert len(rows["here"]) == 12
    assert [(r["prompt"], r["completion"]) for r in rows["served"]] == [
        (r["prompt"], r["completion"]) for r in rows["here"]
    ]
