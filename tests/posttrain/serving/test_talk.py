import pytest
from kit import bytelevel_tokenizer, tiny_model

from posttrain.errors import UserError
from posttrain.rollouts.asking import ask
from posttrain.serving.talk import Turn, spoken
from posttrain.serving.voices import Voice

HELLO = [{"role": "user", "content": "Hello."}]


@pytest.fixture(scope="module")
def voice():
    tokenizer = bytelevel_tokenizer()
    return Voice("m", tiny_model(vocab_size=len(tokenizer)).eval(), tokenizer, 100)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_it_says_what_evaluation_hears(voice, temperature):
    turn = Turn.to(voice, HELLO, max_new_tokens=20, temperature=temperature, seed=4)
    text = "".join(piece for _, piece in spoken([turn]))
    alone = ask(
        voice.model, voice.tokenizer, [voice.prompt_ids(HELLO)], max_new_tokens=20, temperature=temperature, seed=4
    )
    assert turn.said == alone.completion_ids[0] and text == alone.texts(voice.tokenizer)[0]
    assert turn.end == ("stop" if alone.finished[0] else "length") and len(voice.running) == 0


def test_two_in_turn_and_one_given_up(voice):
    other = Voice("n", tiny_model(vocab_size=len(voice.tokenizer), seed=1).eval(), voice.tokenizer, 100)
    turns = [Turn.to(v, HELLO, max_new_tokens=9, temperature=1.0, seed=0) for v in (voice, other)]
    speaking = spoken(turns)
    assert [next(speaking)[0] for _ in range(4)] == [0, 1, 0, 1]
    speaking.close()
    assert len(voice.running) == len(other.running) == 0 and len(turns[0].said) == 2


def test_the_room_that_is_left(voice):
    ids = voice.prompt_ids(HELLO)
    assert Turn.to(voice, HELLO, max_new_tokens=500, temperature=0, seed=0).max_new_tokens == 100 - len(ids)
    with pytest.raises(UserError, match=r"tokens, m reads 100: /reset"):
        Turn.to(voice, [{"role": "user", "content": "x" * 300}], max_new_tokens=5, temperature=0, seed=0)
