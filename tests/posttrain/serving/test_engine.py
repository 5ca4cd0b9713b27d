"""Many clients at once, each in a thread of its own, beside what one call of the training sampler says."""

import queue
import threading
import time

import pytest
import torch
from kit import bytelevel_tokenizer, tiny_model

from posttrain.rollouts.asking import ask
from posttrain.serving.engine import Closed, Engine, Full, Request
from posttrain.serving.voices import Voice, Voices

PROMPTS = [[40 + i, 41, 42 + i % 3] * (1 + i % 4) for i in range(20)]


@pytest.fixture(scope="module")
def voices():
    tokenizer = bytelevel_tokenizer()
    found = Voices(device="cpu", dtype=torch.float32, max_length=None)
    for name, seed in (("one", 0), ("two", 1)):
        found[name] = Voice(name, tiny_model(vocab_size=len(tokenizer), seed=seed).eval(), tokenizer, 256)
        found[name].stop_ids = [2, *range(100, 112)]  # a random model ends some of its answers then
    return found


@pytest.fixture
def engine(voices):
    made = []

    def start(**settings):
        made.append(Engine(voices, **settings))
        return made[-1]

    yield start
    for one in made:
        one.close()
        assert not one.thread.is_alive()
    assert all(len(voice.running) == 0 for voice in voices.values())


def asked(engine, voice, prompt, **how):
    """-> (the request, a queue of what is told)"""
    told = queue.Queue()
    request = Request(voice, prompt, tell=told.put, **{"max_new_tokens": 16} | how)
    engine.submit(request)
    return request, told


def heard(request, told, timeout=60):
    """All answers: lists of tokens."""
    answers = [[] for _ in range(request.n)]
    while not all(tokens and tokens[-1].end for tokens in answers):
        token = told.get(timeout=timeout)
        answers[token.answer].append(token)
    return answers


def test_many_clients_hear_what_they_would_hear_alone(voices, engine):
    """Two models, greedy and sampled, several answers to one prompt, fewer places than requests: ids and log-probs are
    those of rollouts.asking.ask."""
    running, results = engine(max_rows=6, prefill_tokens=20), {}

    def client(i):
        how = {"n": 1 + i % 3, "temperature": (0.0, 1.0, 0.6)[i % 3], "seed": i}
        request, told = asked(running, ("one", "two")[i % 2], PROMPTS[i], **how)
        results[i] = (request, heard(request, told))

    clients = [threading.Thread(target=client, args=(i,)) for i in range(len(PROMPTS))]
    for thread in clients:
        thread.start()
        time.sleep(0.002)
    for thread in clients:
        thread.join(60)
    lengths = set()
    for request, answers in results.values():
        voice = voices[request.voice]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("posttrain.rollouts.asking.template.stop_ids", lambda tokenizer, voice=voice: voice.stop_ids)
            alone = ask(
                voice.model, voice.tokenizer, [request.prompt_ids], max_new_tokens=16, group_size=request.n,
                temperature=request.temperature, seed=request.seed,
            )  # fmt: skip
        for tokens, ids, logps, finished in zip(
            answers, alone.completion_ids, alone.logps, alone.finished, strict=True
        ):
            assert [t.id for t in tokens] == ids
            assert [t.logp for t in tokens] == pytest.approx(logps.tolist(), abs=2e-5)
            assert [t.end for t in tokens] == [None] * (len(ids) - 1) + ["stop" if finished else "length"]
            lengths.add(len(ids))
    assert len(lengths) > 3 and len(results) == 20
    counts = running.counts
    assert counts.answers == sum(request.n for request, _ in results.values())
    assert counts.tokens == sum(len(tokens) for _, answers in results.values() for tokens in answers)
    assert counts.tokens / counts.steps > 1.5, "they are to stand in one batch"


def test_the_queue_has_an_end(engine):
    running = engine(max_rows=1, max_waiting=2)
    holding = threading.Event()
    running.between_tokens(holding.wait)  # nothing is taken from the queue meanwhile
    first = [asked(running, "one", [5, 6], n=1) for _ in range(2)]
    with pytest.raises(Full) as full:
        asked(running, "one", [5, 6])
    assert 1 <= full.value.seconds <= 60
    holding.set()
    for request, told in first:
        heard(request, told)
    heard(*asked(running, "one", [5, 6]))  # there is room again
    with pytest.raises(ValueError, match="at most 1 answers"):
        asked(running, "one", [5, 6], n=2)


def test_several_at_once_are_taken_all_or_none(engine):
    """More than may wait are taken where nobody waits: asked again later, they would be just as many."""
    running, holding, told = engine(max_rows=2, max_waiting=3), threading.Event(), queue.Queue()
    running.between_tokens(holding.wait)
    many = [Request("one", [5, 6], 2, told.put, n=2) for _ in range(4)]
    running.submit(*many)
    with pytest.raises(Full):
        running.submit(Request("one", [7], 2, told.put))
    assert list(running.waiting) == many
    holding.set()
    assert [told.get(timeout=10).end for _ in range(16)].count("length") == 8


def test_who_leaves_makes_room(engine):
    running = engine(max_rows=1)
    long, told = asked(running, "one", [5, 6], max_new_tokens=200, temperature=1.0, seed=3)
    waits, told_too = asked(running, "one", [7], max_new_tokens=2)
    leaves, told_three = asked(running, "one", [7], max_new_tokens=2)
    running.cancel(leaves)
    told.get(timeout=10)
    running.cancel(long)
    last = [token for tokens in heard(long, told) for token in tokens][-1]
    assert (last.id, last.end) == (None, "cancelled")
    assert heard(waits, told_too)[0][-1].end in ("stop", "length")
    assert [t.end for t in heard(leaves, told_three)[0]] == ["cancelled"]


def test_one_answer_of_several_is_given_up(engine):
    running = engine()
    request, told = asked(running, "one", [5, 6], n=3, temperature=1.0, seed=1, max_new_tokens=60)
    running.cancel(request, 1)
    ends = [tokens[-1].end for tokens in heard(request, told)]
    assert ends[1] in ("cancelled", "stop") and "cancelled" not in (ends[0], ends[2])


def test_what_breaks_in_a_batch_does_not_end_the_server(voices, engine, monkeypatch, capsys):
    running = engine()

    def broken(**_):
        raise RuntimeError("out of memory, say")

    with monkeypatch.context() as patch:
        patch.setattr(voices["one"].model, "forward", broken)
        assert [t.end for t in heard(*asked(running, "one", [5, 6]))[0]] == ["error"]
        assert heard(*asked(running, "two", [5, 6]))[0][-1].end in ("stop", "length")  # the other model's
    assert "out of memory, say" in capsys.readouterr().err
    assert heard(*asked(running, "one", [5, 6]))[0][-1].end in ("stop", "length")
    assert not running.dead


def test_what_breaks_before_the_model_is_asked_is_told_too(voices, engine, monkeypatch, capsys):
    def broken():
        raise AttributeError("no such adapter, say")

    running = engine()
    with monkeypatch.context() as patch:
        patch.setattr(voices["one"], "switch_on", broken)
        assert [t.end for t in heard(*asked(running, "one", [5, 6]), timeout=10)[0]] == ["error"]
    assert "no such adapter, say" in capsys.readouterr().err


def test_logits_that_are_no_numbers(voices, engine, monkeypatch, capsys):
    running, real = engine(), voices["one"].running.sample
    with monkeypatch.context() as patch:

        def sample(*arguments):
            voices["one"].running.logits = voices["one"].running.logits * float("nan")
            return real(*arguments)

        patch.setattr(voices["one"].running, "sample", sample)
        assert [t.end for t in heard(*asked(running, "one", [5, 6], temperature=1.0))[0]] == ["error"]
    assert "not finite" in capsys.readouterr().err


def test_between_two_tokens(engine):
    running = engine()
    request, told = asked(running, "one", [5, 6], max_new_tokens=30, temperature=1.0)
    names = [running.between_tokens(lambda: threading.current_thread().name) for _ in range(3)]
    assert {name.result(10) for name in names} == {"engine"}
    with pytest.raises(ZeroDivisionError):
        running.between_tokens(lambda: 1 / 0).result(10)
    heard(request, told)


def test_between_two_tokens_for_somebody_who_has_gone(engine):
    running, holding = engine(), threading.Event()
    running.between_tokens(holding.wait)
    gone = running.between_tokens(lambda: 1 / 0)
    assert gone.cancel()
    holding.set()
    assert running.between_tokens(lambda: 7).result(10) == 7 and not running.dead


def test_a_name_that_means_another_model_by_now(voices, engine, monkeypatch):
    """Who waits for an adapter that is unloaded does not hear what is loaded under its name later."""
    monkeypatch.setattr(voices["one"], "stop_ids", [])
    running = engine(max_rows=1)
    long, told = asked(running, "one", [5, 6], max_new_tokens=240)
    told.get(timeout=10)
    waits, told_too = asked(running, "two", [5, 6])
    old = running.between_tokens(lambda: voices.pop("two")).result(10)
    running.between_tokens(lambda: voices.update(two=old)).result(10)
    running.cancel(long)
    assert [t.end for t in heard(waits, told_too)[0]] == ["cancelled"]


def test_it_ends_what_runs_and_takes_no_more(engine):
    running = engine(max_rows=1)
    requests = [asked(running, "one", [5, 6], max_new_tokens=5) for _ in range(3)]
    running.close(finish=30)
    assert all(tokens[-1].end in ("stop", "length") for one in requests for tokens in heard(*one))
    with pytest.raises(Closed):
        asked(running, "one", [5])


def test_it_does_not_wait_for_ever(engine):
    running = engine(max_rows=1)
    requests = [asked(running, "two", [5, 6], max_new_tokens=240, temperature=1.0, seed=i) for i in range(40)]
    running.close(finish=0)
    ends = [tokens[-1].end for one in requests for tokens in heard(*one)]
    assert ends.count("cancelled") > 20
    assert not running.thread.is_alive()


@pytest.mark.parametrize(("finish", "end"), [(0, "cancelled"), (30, "length")])
def test_it_is_closed_while_a_prompt_is_read(voices, engine, monkeypatch, finish, end):
    """A request that waits no more and has no rows yet is told, or waited for, like the others."""
    reads, go_on, read = threading.Event(), threading.Event(), voices["one"].running.read

    def slow(*arguments):
        reads.set()
        go_on.wait(10)
        return read(*arguments)

    monkeypatch.setattr(voices["one"].running, "read", slow)
    monkeypatch.setattr(voices["one"], "stop_ids", [])
    running = engine()
    request, told = asked(running, "one", [5, 6], max_new_tokens=100)
    assert reads.wait(10)
    closing = threading.Thread(target=running.close, kwargs={"finish": finish})
    closing.start()
    time.sleep(0.2)
    go_on.set()
    closing.join(30)
    assert not running.thread.is_alive() and heard(request, told, timeout=10)[0][-1].end == end
