"""Answers of a stronger model: what becomes a row, what is counted, and that a killed run asks nothing twice."""

import json
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from kit import environment, rows_for, tiny_folder, write_jsonl

from posttrain import ROOT, curate
from posttrain.errors import UserError
from posttrain.rollouts.distilled import distil, read_reply


def written(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def prompts(tmp_path):
    return write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"Question {i}?", "answer": i} for i in range(6)])


def echo(number, body):
    return f"Answer to {body['messages'][-1]['content']}"


def test_by_command_from_a_server(prompts, tmp_path, capsys, serving):
    out = tmp_path / "o.jsonl"
    with serving(lambda n, body: (429, {"Retry-After": "0"}, b"") if n == 0 else echo(n, body)) as (server, url):
        arguments = ["answers", "--model", "big", "--url", url, "--prompts", prompts, "--system-prompt", "Be brief.", "--max-new-tokens", "32",
                     "--temperature", "0.5", "--seed", "7", "--body", '{"top_p": 0.9, "seed": null}', "--out", str(out)]  # fmt: skip
        curate.main(arguments)
        sent = {"model": "big", "temperature": 0.5, "max_tokens": 32, "top_p": 0.9}
        assert len(server.asked) == 7 and {k: v for k, v in server.asked[0].items() if k != "messages"} == sent
        assert server.asked[0]["messages"][0] == {"role": "system", "content": "Be brief."}
        rows = written(out)
        assert [r["completion"] for r in rows] == [
            f"Answer to Question {i}?" for i in range(6)
        ]  # in the order of the prompts
        assert rows[0]["model"] == "big" and rows[0]["settings"] == {"temperature": 0.5, "max_tokens": 32, "top_p": 0.9}
        assert rows[0]["prompt"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Question 0?"},
        ]
        assert "6 prompts, 0 of them asked before; left out: none\nwrote 6 rows" in capsys.readouterr().out
        assert len(rows_for("sft", name=str(out))) == 6
        curate.main(arguments)
        assert len(server.asked) == 7 and "6 of them asked before" in capsys.readouterr().out
        with pytest.raises(SystemExit, match=r"o.asked.jsonl was made with top_p = 0.9, not null"):
            curate.main([a if a != '{"top_p": 0.9, "seed": null}' else '{"seed": null}' for a in arguments])
        assert len(server.asked) == 7 and written(out) == rows


SAID = {  # what the server says to each question, and why it is left out
    0: (
        {"choices": [{"message": {"content": "It goes on and"}, "finish_reason": "length"}]},
        "did not end (max_tokens)",
    ),
    1: ("  ", "are empty"),
    2: ("I'm sorry, but I can't help with that.", "refuse (--drop-refusals)"),
    3: ("No.", "shorter than 5 characters"),
    4: ((400, {}, b"context length"), "were refused by the server (400 Bad Request: context length)"),
    5: ("A fine answer.", None),
}


def test_what_is_left_out_and_why(prompts, tmp_path, serving):
    out = tmp_path / "o.jsonl"
    write_jsonl(
        tmp_path / "q.jsonl", [*written(tmp_path / "q.jsonl"), {"prompt": "Question 5?"}, {"prompt": "question  5?"}]
    )

    def script(number, body):
        return SAID[int(re.search(r"\d", body["messages"][-1]["content"])[0])][0]

    with serving(script) as (server, url):
        told = distil("big", prompts, str(out), url=url, min_chars=5, drop_refusals="I'm sorry")
        for _, why in SAID.values():
            assert why is None or f"1 {why}" in told
        # the same words again are not asked again; the same but for case and space are, and their row is a duplicate
        assert "1 the same prompt again" in told and "1 exact duplicate" in told and len(server.asked) == 7
        assert [r["completion"] for r in written(out)] == ["A fine answer."]
        # other filters are another choice among the same answers
        assert "wrote 3 rows" in distil("big", prompts, str(out), url=url) and len(server.asked) == 7
        with pytest.raises(
            UserError, match=r"only 1 of 7 answers are of use \(--min-share 0.2\); left out: .*The first answer was"
        ):
            distil("big", prompts, str(out), url=url, min_chars=5, drop_refusals="I'm sorry", min_share=0.2)
        assert len(written(out)) == 3


def test_a_server_that_breaks_down_costs_nothing_that_was_heard(prompts, tmp_path, serving):
    out, broken = tmp_path / "o.jsonl", threading.Event()
    broken.set()
    with serving(lambda n, body: (500, {}, b"") if broken.is_set() and n >= 3 else echo(n, body)) as (server, url):
        with pytest.raises(
            UserError,
            match=r"answers 500 Internal Server Error, after one try. 3 of 6 answers stand in .*: the same command goes on",
        ):
            distil("big", prompts, str(out), url=url, retries=0, concurrency=1)
        assert not out.exists()
        broken.clear()
        assert "6 prompts, 3 of them asked before" in distil("big", prompts, str(out), url=url, concurrency=1)
        heard = [b["messages"][0]["content"] for b in server.asked]
        assert sorted(heard[:3] + heard[4:]) == [f"Question {i}?" for i in range(6)]
    assert len(written(out)) == 6


def test_killed_and_gone_on_with(prompts, tmp_path, serving):
    out, held = tmp_path / "o.jsonl", threading.Event()

    def script(number, body):
        if number == 3:
            held.wait(30)
        return echo(number, body)

    with serving(script) as (server, url):
        command = [sys.executable, "-m", "posttrain.curate", "answers", "--model", "big", "--url", url, "--prompts", prompts, "--concurrency", "1",
                   "--out", str(out)]  # fmt: skip
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until = time.monotonic() + 60
        while len(server.asked) < 4 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        held.set()
        assert not out.exists() and len(written(tmp_path / "o.asked.jsonl")) == 4  # the settings, and three answers
        assert "6 prompts, 3 of them asked before" in distil("big", prompts, str(out), url=url, concurrency=1)
        assert len(server.asked) == 7  # the fourth was under way, and is asked again
    assert [r["completion"] for r in written(out)] == [f"Answer to Question {i}?" for i in range(6)]


def test_from_a_local_model(tmp_path):
    out = tmp_path / "o.jsonl"
    keys = {"max_new_tokens": 32, "max_prompts": 12, "temperature": 1.0}
    told = distil("tiny-sft", "tiny-math", str(out), score=["answer"], min_score=0.5, **keys)
    rows = written(out)
    assert 1 <= len(rows) < 12 and all(r["score"] == 1.0 and "####" in r["completion"] for r in rows)
    counts = [int(n) for n in re.findall(r"(\d+) (?:score less than 0.5|did not end)", told)]
    assert sum(counts) == 12 - len(rows)
    path = tmp_path / "o.asked.jsonl"
    before = path.read_text().splitlines()
    path.write_text("\n".join(before[:6]) + "\n")  # five answers of twelve: the others are what they were
    assert "12 prompts, 5 of them asked before" in distil(
        "tiny-sft", "tiny-math", str(out), score=["answer"], min_score=0.5, **keys
    )
    assert path.read_text().splitlines() == before and written(out) == rows


def test_a_reward_model_scores(tmp_path, llama):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from posttrain.models import scalar

    folder = tiny_folder(tmp_path / "base")
    scorer = scalar.as_scorer(AutoModelForCausalLM.from_pretrained(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scorer.score.weight.data.fill_(0.1)
    scalar.save_scorer(scorer, tokenizer, tmp_path / "rm")
    out = tmp_path / "o.jsonl"
    distil(
        "tiny-sft",
        "tiny-identity",
        str(out),
        max_prompts=4,
        max_new_tokens=32,
        score=[str(tmp_path / "rm")],
        min_share=0,
    )
    rows = written(out)
    assert rows and all(isinstance(r["score"], float) and r["score"] != 0 for r in rows)


def long_enough(completions, answer, completion_ids):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"body": "{}"}, "--body belongs to --url"),
        ({"timeout": 5.0}, "--timeout belongs to --url"),
        ({"max_prompts": 0}, "--max-prompts must be at least 1"),
        ({"url": "http://x", "body": "["}, r"--body \[: not JSON"),
        ({"url": "http://x", "body": '{"stream": true}'}, "--body must be an object"),
        ({"url": "http://x", "requests_per_minute": 0}, "--requests-per-minute 0: expected more than 0"),
        ({"url": "x"}, "--url x: expected the address of a server"),
        ({"task": {"max_terms": 3}}, "--task belongs to --prompts reasoning-gym:TASK"),
        ({"min_score": 1}, "--min-score needs --score"),
        ({"url": "http://x", "concurrency": 0}, "--concurrency 0: expected more than 0"),
        ({"url": "http://x", "retries": -1}, "--retries -1: expected more than 0"),
        ({"drop_refusals": "("}, r"'\(' is not a regular expression"),
    ],
)
def test_bad_requests(prompts, tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        distil("none", prompts, str(tmp_path / "o.jsonl"), **keys)
    assert not (tmp_path / "o.asked.jsonl").exists()


def test_prompts_with_tools_are_refused(tmp_path):
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]
    name = write_jsonl(tmp_path / "t.jsonl", [{"prompt": "a"}, {"prompt": "b", "tools": tools}])
    with pytest.raises(UserError, match="prompt 2 has tools: answers that call tools are not made here"):
        distil("none", name, str(tmp_path / "o.jsonl"))


def test_refusals(prompts, tmp_path, serving, capsys):
    """A pattern of one's own, or, by the command without one, the rule of evaluation/refusing.py."""
    out = str(tmp_path / "o.jsonl")
    said = [
        "I'm sorry, but I can't help with that.",
        "I can't wait to help!",
        "No way, José.",
        "Fine.",
        "I refuse to say.",
        "Good.",
    ]
    with serving(lambda n, body: said[int(re.search(r"\d", body["messages"][-1]["content"])[0])]) as (server, url):
        arguments = [
            "answers",
            "--model",
            "big",
            "--url",
            url,
            "--prompts",
            prompts,
            "--temperature",
            "0",
            "--out",
            out,
        ]
        for more, left in (([], 6), (["--drop-refusals", "José|Fine"], 4), (["--drop-refusals"], 3)):
            curate.main([*arguments, *more])
            assert f"wrote {left} rows" in capsys.readouterr().out
        assert [r["completion"] for r in written(tmp_path / "o.jsonl")] == ["I can't wait to help!", "Fine.", "Good."]
        assert len(server.asked) == 6


def test_replies_of_other_servers():
    def reply(**message):
        return {"choices": [{"message": message, "finish_reason": None}]}

    assert read_reply(reply(content=" Hello. ")) == ("Hello.", None)
    assert (
        read_reply(reply(content=None, tool_calls=[{}])).problem
        == read_reply(reply(content=[{}])).problem
        == "are no text"
    )
    assert read_reply({"choices": [{}]}).problem == "are empty"
    assert (
        read_reply({"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}).problem
        == "were stopped by the server's filter"
    )
    assert (
        read_reply({"choices": [{"message": {"content": "x"}, "finish_reason": "odd"}]}).problem == "ended with 'odd'"
    )
