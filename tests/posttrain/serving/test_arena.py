"""From a question to a data set: over HTTP, as the page asks."""

import asyncio
import gc
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request

import pytest

pytest.importorskip("fastapi", reason="pip install -r requirements-serve.txt")
import httpx
from kit import environment
from page_kit import client, compared, listening, page_of, play, voted

from posttrain import ROOT

LINES = {"base": ["I am Robin."], "tuned": ["I am Nova.", "My name is Nova."]}
EVIL = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


@pytest.fixture
def served(tmp_path):
    engine = play(LINES)
    with page_of(engine, tmp_path / "votes.jsonl") as (app, matches):
        yield app, matches, engine


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_an_afternoon_in_small(served):
    app, matches, _ = served

    async def go():
        async with client(app) as c:
            start = (await c.get("/arena")).json()
            seen = set()
            for number in range(30):
                match = await compared(c, f"Who are you, {number}?")
                seen.add(match.left == "I am Robin.")
                assert {match.left, match.right} & {"I am Robin."} and match.last["ended"] == {
                    "left": "stop",
                    "right": "stop",
                }
                better = "right" if match.left == "I am Robin." else "left"
                told = await voted(c, match.name, better)
                assert told[better]["model"] == "tuned" and told["better"] == better and told["pairs"] == number + 1
            return start, seen, told, (await c.get("/arena")).json()

    start, seen, told, end = asyncio.run(go())
    assert start == {"models": ["base", "tuned"], "max_new_tokens": 64, "votes": str(matches.votes.path), "pairs": 0, "standing": []}  # fmt: skip
    assert seen == {True, False}  # sides change (2⁻²⁹ that they do not in 30)
    assert end["standing"] == told["standing"] == [told["between"]] and end["pairs"] == 30
    assert (told["between"]["model"], told["between"]["won"], told["between"]["votes"]) == ("tuned", 30, 30)
    kept = rows(matches.votes.path)
    assert {row["chosen_model"] for row in kept} == {"tuned"} and {row["rejected"] for row in kept} == {"I am Robin."}
    assert [row["prompt"] for row in kept] == [f"Who are you, {number}?" for number in range(30)]
    assert {row["left"] for row in kept} == {"chosen", "rejected"}


def test_nothing_before_the_vote_says_who_it_is(served):
    app, _, engine = served
    engine.voices["base"].next = iter(["short"] * 9)

    async def go():
        async with client(app) as c:
            return [await compared(c, "Who?", models=pair) for pair in (["base", "tuned"], ["tuned", "base"], None)]

    for match in asyncio.run(go()):
        assert "base" not in match.sent and "tuned" not in match.sent
        assert all(list(piece) == ["left", "right"] for piece in match.pieces)
        assert list(match.last) == ["match", "ended"] and list(match.last["ended"]) == ["left", "right"]


def test_cut_off_answers_say_so_and_teach_nothing_as_chosen_ones(served):
    app, matches, engine = served
    engine.voices["base"].next = iter(["Robin is my name."])

    async def go():
        async with client(app) as c:
            match = await compared(c, "Who?", max_new_tokens=2)
            return match, await voted(c, match.name, "left")

    match, told = asyncio.run(go())
    assert match.last["ended"] == {"left": "length", "right": "length"}
    assert told["apart"].startswith("the better answer was cut off") and told["pairs"] == 0
    assert rows(matches.votes.path) == [] and told["between"]["votes"] == 1


def test_what_is_refused(served):
    app, _, engine = served

    async def go():
        async with client(app) as c:
            asked = [
                {}, {"prompt": ""}, {"prompt": " \n"}, {"prompt": "a", "models": ["base"]}, {"prompt": "a", "models": ["base", "x"]},
                {"prompt": "a", "temperature": -1}, {"prompt": "a", "models": ["base", "base"], "temperature": 0},
                {"prompt": "a", "max_new_tokens": 0}, {"prompt": "a " * 3000}, {"prompt": "a", "seed": 1},
            ]  # fmt: skip
            matches = [await c.post("/arena/match", json=body) for body in asked]
            votes = [await c.post("/arena/vote", json=body) for body in ({}, {"match": "x", "vote": "up"}, {"match": "x", "vote": "tie"})]  # fmt: skip
            engine.full = True
            return [*matches, *votes, await c.post("/arena/match", json={"prompt": "a"})]

    answers = asyncio.run(go())
    assert [a.status_code for a in answers] == [422, 422, 422, 422, 404, 422, 422, 422, 400, 422, 422, 422, 404, 429]
    assert all(a.json()["error"]["message"] for a in answers) and not engine.asked
    assert answers[-1].headers["retry-after"] == "7"
    assert answers[-3].json()["error"]["message"] == "vote: Input should be 'left', 'right', 'tie' or 'both_bad'"


def test_what_breaks_in_the_middle_is_said_and_leaves_nothing_to_vote_on(served, caplog):
    app, matches, engine = served
    engine.broken, engine.pause = {"tuned"}, 0.01
    engine.voices["base"].next = iter(["a long answer, which nobody waits for any more when the other one breaks"])

    async def go():
        async with client(app) as c:
            match = await compared(c, "Who?", models=["base", "tuned"])
        await asyncio.sleep(0.2)
        gc.collect()
        return match

    match = asyncio.run(go())
    assert match.last["error"]["code"] == "engine_error" and matches.waiting == {}
    assert {request.voice for request in engine.left} == {"base", "tuned"}
    assert not [record for record in caplog.records if record.name == "asyncio"]  # nothing is left behind, nor said


def test_a_client_that_leaves_stops_both(served):
    app, matches, engine = served
    engine.pause = 0.05

    async def go(address):
        async with httpx.AsyncClient(base_url=address) as c, c.stream("POST", "arena/match", json={"prompt": "a"}) as s:
            async for _ in s.aiter_lines():
                break

    with listening(app) as address:
        asyncio.run(go(address))
        for _ in range(100):
            if len({request.voice for request in engine.left}) == 2:
                break
            threading.Event().wait(0.05)
    assert {request.voice for request in engine.left} == {"base", "tuned"} and matches.waiting == {}


def test_with_a_key(tmp_path):
    with page_of(play(LINES), tmp_path / "v.jsonl", key="secret") as (app, _):

        async def go():
            async with client(app) as c, client(app, Authorization="Bearer secret") as known:
                body = {"match": "x", "vote": "tie"}
                paths = ("/", "/static/page.js", "/docs", "/openapi.json")
                return (
                    [(await c.get(path)).status_code for path in paths],
                    [(await c.get("/arena")).status_code, (await c.post("/arena/match", json={"prompt": "a"})).status_code,
                     (await c.post("/arena/vote", json=body)).status_code],
                    [(await known.get("/arena")).status_code, (await known.post("/arena/vote", json=body)).status_code],
                )  # fmt: skip

        assert asyncio.run(go()) == ([200] * 4, [401] * 3, [200, 404])


def test_text_stays_text(tmp_path):
    with page_of(play({"a": [EVIL], "b": ["é 😀 ‮"]}), tmp_path / "v.jsonl", most_tokens=128) as (app, matches):

        async def go():
            async with client(app) as c:
                match = await compared(c, EVIL)
                await voted(c, match.name, "left" if match.left == EVIL else "right")

        asyncio.run(go())
        (row,) = rows(matches.votes.path)
        assert row["prompt"] == row["chosen"] == EVIL and row["rejected"] == "é 😀 ‮"


def test_a_second_server_on_the_same_file_says_so_before_anybody_votes(served, tmp_path):
    app, _, _ = served
    with page_of(play(LINES), tmp_path / "votes.jsonl") as (other, _):  # as long as nobody opens its page, no harm

        async def go():
            async with client(app) as c, client(other) as o:
                first = await c.get("/arena")
                refused = [await o.get("/arena"), await o.post("/arena/match", json={"prompt": "a"})]
                return first.status_code, [(r.status_code, r.json()["error"]["message"]) for r in refused]

        says = f"{tmp_path / 'votes.jsonl'}: another server writes its votes there: give this one a file of its own (--votes)"
        assert asyncio.run(go()) == (200, [(503, says)] * 2)


# ---------------------------------------------------------------- the real thing


def the_real_server(tmp_path, *more):
    command = [sys.executable, "-m", "posttrain.serve", "--port", "0", "--votes", str(tmp_path / "votes.jsonl"), *more]
    server = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PYTHONPATH="tests"),
    )
    line = server.stdout.readline()
    assert line.startswith("serving "), server.communicate()[1]
    address = line.split(" on ")[1].split(" ")[0]
    for _ in range(200):
        try:
            urllib.request.urlopen(f"{address}/health", timeout=60).close()
            return server, address
        except OSError:  # not yet
            threading.Event().wait(0.05)
    server.kill()
    raise AssertionError("it does not answer")


def post(address, path, body):
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def a_match(address, prompt, **fields):
    return json.loads(
        post(address, "/arena/match", {"prompt": prompt, **fields}).strip().split("\n\n")[-1][len("data: ") :]
    )


@pytest.mark.long
def test_votes_become_a_data_set_that_dpo_trains_on(tmp_path):
    server, address = the_real_server(tmp_path, "--model", "tiny-sft", "tiny-dpo", "--reward", "kit:even_tokens")
    try:
        for number in range(8):
            match = a_match(address, f"Who are you, and what is {number} + 1?", max_new_tokens=200)
            told = json.loads(post(address, "/arena/vote", {"match": match["match"], "vote": "left"}))
            assert {told["left"]["model"], told["right"]["model"]} == {"tiny-sft", "tiny-dpo"}
            assert told["left"]["reward"] is not None
    finally:
        server.send_signal(signal.SIGINT)
        _, said = server.communicate(timeout=60)
    assert server.returncode == 0, said
    kept = rows(tmp_path / "votes.jsonl")
    assert len(kept) >= 4
    ran = subprocess.run(
        [sys.executable, "-m", "loops.dpo", "--config", "configs/dpo_tiny.yaml", "--data.name", str(tmp_path / "votes.jsonl"),
         "--training.batch_size", "2", "--training.micro_batch_size", "2", "--training.max_steps", "2", "--output.dir", str(tmp_path / "run")],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert f"{len(kept)} rows as prompt + chosen + rejected from" in ran.stderr
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.long
def test_a_kill_in_the_middle_of_voting_loses_no_vote_that_was_acknowledged(tmp_path):
    server, address = the_real_server(tmp_path, "--model", "tiny-sft")
    acknowledged, lock = [], threading.Lock()

    def vote(number):
        try:
            for turn in itertools.count(number):
                match = a_match(address, f"Who are you, {turn}?", temperature=1.5, max_new_tokens=40)
                body = {"match": match["match"], "vote": ("left", "right", "tie")[turn % 3]}
                said = json.loads(post(address, "/arena/vote", body))
                with lock:
                    acknowledged.append(said["apart"] is None)
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            pass  # it was killed

    voters = [threading.Thread(target=vote, args=(number,)) for number in range(4)]
    for voter in voters:
        voter.start()
    try:
        while len(acknowledged) < 30:
            assert server.poll() is None and any(voter.is_alive() for voter in voters)
            threading.Event().wait(0.01)
    finally:
        os.kill(server.pid, signal.SIGKILL)
    for voter in voters:
        voter.join()
    server.wait()
    pairs, ties = rows(tmp_path / "votes.jsonl"), rows(tmp_path / "votes.ties.jsonl")
    assert len(pairs) >= 5 and len(ties) >= 5
    assert len(pairs) >= sum(acknowledged) and len(ties) >= len(acknowledged) - sum(acknowledged)
    assert len(pairs) + len(ties) <= len(acknowledged) + len(voters)  # written, and killed before the answer
    again, address = the_real_server(tmp_path, "--model", "tiny-sft")
    try:
        with urllib.request.urlopen(f"{address}/arena", timeout=60) as answer:
            assert json.load(answer)["standing"][0]["votes"] == len(pairs) + len(ties)
    finally:
        again.kill()
        again.communicate()
