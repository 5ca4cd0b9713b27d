import time

import pytest
from kit import bytelevel_tokenizer, tiny_model

from posttrain.errors import UserError
from posttrain.rollouts.asking import ask
from posttrain.serving.engine import Engine
from posttrain.serving.talk import Turn, spoken
from posttrain.serving.voices import Voice

HELLO = [{"role": "user", "content": "Hello."}]


@pytest.fixture(scope="module")
def engine():
    tokenizer = bytelevel_tokenizer()
    voices = {
        name: Voice(name, tiny_model(vocab_size=len(tokenizer), seed=seed).eval(), tokenizer, 100)
        for seed, name in enumerate("mn")
    }
    made = Engine(voices)
    yield made
    made.close()


@pytest.fixture
def voice(engine):
    return engine.voices["m"]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_it_says_what_evaluation_hears(engine, voice, temperature):
    turn = Turn.to(voice, HELLO, max_new_tokens=20, temperature=temperature, seed=4)
    text = "".join(piece for _, piece in spoken(engine, [turn]))
    alone = ask(
        voice.model, voice.tokenizer, [voice.prompt_ids(HELLO)], max_new_tokens=20, temperature=temperature, seed=4
    )
    assert turn.answer.ids == alone.completion_ids[0] and text == alone.texts(voice.tokenizer)[0]
    assert turn.answer.end == ("stop" if alone.finished[0] else "length")


def test_two_at_the_same_time_and_given_up(engine):
    turns = [Turn.to(v, HELLO, max_new_tokens=80, temperature=1.0, seed=0) for v in engine.voices.values()]
    speaking = spoken(engine, turns)
    assert {next(speaking)[0] for _ in range(6)} == {0, 1}
    speaking.close()
    end = time.monotonic() + 10
    while engine.running and time.monotonic() < end:
        time.sleep(0.01)
    assert engine.running == 0 and [turn.answer.end for turn in turns] == [None, None]


def test_a_model_that_cannot_go_on(engine, voice, monkeypatch, capsys):
    def broken(**_):
        raise RuntimeError("no memory, say")

    monkeypatch.setattr(voice.model, "forward", broken)
    with pytest.raises(UserError, match="m could not go on"):
        list(spoken(engine, [Turn.to(voice, HELLO, max_new_tokens=5, temperature=0, seed=0)]))
    assert "no memory, say" in capsys.readouterr().err


def test_the_room_that_is_left(voice):
    ids = voice.prompt_ids(HELLO)
    assert Turn.to(voice, HELLO, max_new_tokens=500, temperature=0, seed=0).max_new_tokens == 100 - len(ids)
    with pytest.raises(UserError, match=r"tokens, m reads 100: /reset"):
        Turn.to(voice, [{"role": "user", "content": "x" * 300}], max_new_tokens=5, temperature=0, seed=0)
