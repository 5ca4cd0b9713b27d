"""Between a client and the engine: the engine is a stand-in that says what a test tells it to."""

import asyncio

import pytest
from kit import bytelevel_tokenizer

from posttrain.serving.conversation import Conversation, Wanted
from posttrain.serving.engine import Closed, Full, Token
from posttrain.serving.refused import Refusal

TOKENIZER = bytelevel_tokenizer()


class Voice:
    name, tokenizer = "m", TOKENIZER


class Engine:
    def __init__(self, refuses=None):
        self.requests, self.cancelled, self.refuses = [], [], refuses

    def submit(self, *requests):
        if self.refuses is not None:
            raise self.refuses
        self.requests += requests

    def cancel(self, request, answer=None):
        self.cancelled.append((request, answer))


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def said(text, answer=0, end="length"):
    tokens = [Token(answer, i, -1.0, [], None) for i in ids(text)]
    return [*tokens[:-1], tokens[-1]._replace(end=end)]


def run(wanted, tokens, engine=None):
    """tokens: of each request. -> (pieces by answer, engine, conversation)"""
    engine = engine or Engine()

    async def go():
        conversation = Conversation(engine, wanted)
        try:
            conversation.begin()
            for request, of_one in zip(engine.requests, tokens, strict=True):
                for token in of_one:
                    request.tell(token)
            pieces = {}
            async for index, piece, _ in conversation:
                pieces[index] = pieces.get(index, "") + piece
            return pieces, conversation
        finally:
            conversation.leave()

    pieces, conversation = asyncio.run(go())
    return pieces, engine, conversation


def test_two_prompts_two_answers_each():
    wanted = Wanted(Voice, [[1], [2]], [9, 8], n=2, seed=3)
    pieces, engine, conversation = run(wanted, [said("ab", 1) + said("cd", 0), said("ef", 0) + said("gh", 1, "stop")])
    assert pieces == {1: "ab", 0: "cd", 2: "ef", 3: "gh"}
    assert [answer.end for answer in conversation.answers] == ["length", "length", "length", "stop"]
    assert [(r.prompt_ids, r.max_new_tokens, r.n, r.seed) for r in engine.requests] == [([1], 9, 2, 3), ([2], 8, 2, 3)]


def test_without_a_seed_another_one_each_time():
    seeds = {run(Wanted(Voice, [[1]], [9]), [said("a")])[1].requests[0].seed for _ in range(4)}
    assert len(seeds) == 4


def test_a_stop_string_is_told_to_the_engine():
    wanted = Wanted(Voice, [[1]], [9], n=2, stop=["lo"])
    pieces, engine, _ = run(wanted, [said("Hello there", 0) + said("Hi", 1)])
    assert pieces == {0: "Hel", 1: "Hi"}
    assert engine.cancelled[0] == (engine.requests[0], 0)  # that answer alone


@pytest.mark.parametrize(
    ("refuses", "status"), [(Full(7), 429), (Closed(), 503), (ValueError("n = 9: at most 8"), 400)]
)
def test_what_the_engine_does_not_take(refuses, status):
    """Two prompts are taken both or not at all."""
    engine = Engine(refuses)
    with pytest.raises(Refusal) as refused:
        run(Wanted(Voice, [[1], [2]], [9, 9]), [], engine)
    assert refused.value.status == status and engine.requests == []
    assert refused.value.retry == {429: 7, 503: 5, 400: None}[status]


@pytest.mark.parametrize(("end", "status"), [("error", 500), ("cancelled", 503)])
def test_broken_off(end, status):
    with pytest.raises(Refusal) as refused:
        run(Wanted(Voice, [[1]], [9]), [[*said("ab", end=None), Token(0, None, 0.0, [], end)]])
    assert refused.value.status == status


def test_nobody_listens_any_more():
    """The loop is closed while the engine still tells: that is nobody's error."""
    pieces, engine, conversation = run(Wanted(Voice, [[1]], [9]), [said("a")])
    engine.requests[0].tell(Token(0, 5, -1.0, [], None))
    assert pieces == {0: "a"} and conversation.heard.empty() and conversation.answers[0].ids == ids("a")
