"""Which two are compared, on which side, and what a vote does: once, for both answers, while it is remembered."""

import asyncio
from collections import Counter

import pytest

pytest.importorskip("fastapi", reason="pip install -r requirements-serve.txt")
from page_kit import page_of, play

from posttrain.errors import UserError
from posttrain.serving.matches import Match, Pair, reward_named
from posttrain.serving.refused import Refusal
from posttrain.serving.votes import Side

LINES = {"base": ["I am Robin."], "tuned": ["I am Nova, and glad to meet you."]}


@pytest.fixture
def stage(tmp_path):
    """(engine, matches) around it"""
    engine = play(LINES)
    with page_of(engine, tmp_path / "votes.jsonl") as (_, matches):
        matches.votes.open()
        yield engine, matches


def written(matches, left="base", right="tuned"):
    sides = [Side(name, f"I am {name}.", True, seed) for seed, name in enumerate((left, right))]
    return Match("Who?", sides, [[1, 2], [3, 4]], 1.0, 64)


def refusal(coroutine):
    with pytest.raises(Refusal) as caught:
        asyncio.run(coroutine)
    return caught.value.status, caught.value.message


def test_sides_are_drawn(stage):
    _, matches = stage
    drawn = Counter(tuple(matches.draw(["base", "tuned"])) for _ in range(400))
    assert set(drawn) == {("base", "tuned"), ("tuned", "base")}
    assert abs(drawn["base", "tuned"] - 200) < 70  # 7 standard deviations (√400/2 = 10 each)


def test_which_pairs(tmp_path):
    with page_of(play({name: ["x"] for name in "abc"}), tmp_path / "v.jsonl") as (_, matches):
        drawn = {tuple(matches.draw(None)) for _ in range(400)}
        assert drawn == {(x, y) for x in "abc" for y in "abc" if x != y}
        assert matches.draw(["b", "b"]) == ["b", "b"]
    with page_of(play({"alone": ["x"]}), tmp_path / "v.jsonl") as (_, matches):
        assert matches.draw(None) == ["alone", "alone"]


def test_two_samples_are_drawn_with_two_seeds(stage):
    engine, matches = stage
    pair = Pair(matches.server, "Who?", ["base", "base"], 1.0, 9)

    async def hear():
        pair.begin()
        return [pieces async for pieces in pair]

    pieces = asyncio.run(hear())
    assert len({request.seed for request in engine.asked}) == 2
    assert {request.max_new_tokens for request in engine.asked} == {9}
    assert "".join(left for left, _ in pieces) == "".join(right for _, right in pieces) != ""
    with pytest.raises(Refusal, match="temperature: at 0 a model says the same twice"):
        Pair(matches.server, "Who?", ["base", "base"], 0.0, 9)
    Pair(matches.server, "Who?", ["base", "tuned"], 0.0, 9)


def test_both_may_write_equally_much(stage):
    engine, matches = stage
    asked = len(engine.voices["base"].prompt_ids([{"role": "user", "content": "Who?"}]))
    engine.voices["base"].limit = asked + 5
    assert Pair(matches.server, "Who?", ["base", "tuned"], 1.0, None).max_new_tokens == 5
    with pytest.raises(
        Refusal, match=f"{asked} tokens of the prompt and 6 of the answer are more than the {asked + 5}"
    ):
        Pair(matches.server, "Who?", ["tuned", "base"], 1.0, 6)


def test_if_one_is_not_taken_the_other_is_not_written(stage):
    engine, matches = stage
    taken, submit = [], engine.submit

    def only_one(request):
        engine.full = bool(taken)
        submit(request)
        taken.append(request)

    engine.submit = only_one

    async def begin():
        Pair(matches.server, "Who?", ["base", "tuned"], 1.0, 9).begin()

    assert refusal(begin()) == (429, "the queue is full: try again in 7 s")
    assert len(taken) == 1 and taken[0] in engine.left


def test_neither_waits_for_its_vote_longer_than_the_other(stage):
    """The pieces come two by two, whatever each model takes for its own."""
    _, matches = stage

    class Slow:
        def __init__(self, steps, seconds):
            self.steps, self.seconds = steps, seconds

        async def __aiter__(self):
            for i in range(self.steps):
                await asyncio.sleep(self.seconds)
                yield 0, str(i), None

    pair = Pair(matches.server, "Who?", ["base", "tuned"], 1.0, 9)
    pair.conversations = [Slow(2, 0.0), Slow(4, 0.005)]

    async def hear():
        return [pieces async for pieces in pair]

    assert asyncio.run(hear()) == [["0", "0"], ["1", "1"], ["", "2"], ["", "3"]]


def test_a_vote_is_taken_once(stage):
    _, matches = stage

    async def go():
        name = matches.put(written(matches))
        first, again, third = await asyncio.gather(*(matches.vote(name, "right") for _ in range(3)))
        assert first == again == third and matches.votes.made == 1
        assert first["better"] == "right" and first["right"] == {"model": "tuned", "reward": None}
        assert first["between"]["win_rate"] == 1.0 and first["apart"] is None
        return matches.vote(name, "left")

    async def other_way():
        return await (await go())

    assert refusal(other_way()) == (409, "the vote was right: it stays")
    assert matches.votes.made == 1
    assert refusal(matches.vote("no-such", "left")) == (404, "no such match any more: ask again")


def test_it_forgets(stage):
    _, matches = stage
    matches.most = 3
    names = [matches.put(written(matches)) for _ in range(5)]
    assert list(matches.waiting) == names[2:] and len({*names}) == 5 and all(len(name) == 22 for name in names)
    assert refusal(matches.vote(names[1], "left"))[0] == 404
    matches.seconds = 0
    assert refusal(matches.vote(names[4], "left"))[0] == 404
    last = matches.put(written(matches))
    assert list(matches.waiting) == [last]


def test_a_vote_that_cannot_be_written_can_be_sent_again(stage, capsys, monkeypatch):
    _, matches = stage
    name, folder = matches.put(written(matches)), matches.votes.path.parent
    add = matches.votes.add

    def full(vote):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(matches.votes, "add", full)
    status, message = refusal(matches.vote(name, "left"))
    assert (status, message) == (503, "the vote could not be written: No space left on device: mend it, and vote again")
    assert "No space left" in capsys.readouterr().err and list(folder.glob("*.jsonl")) == []
    monkeypatch.setattr(matches.votes, "add", add)
    assert asyncio.run(matches.vote(name, "right"))["between"]["votes"] == 1


def test_the_reward_is_shown_after_the_vote_and_kept(stage):
    _, matches = stage

    def length(completions, completion_ids, finished, prompts):
        assert prompts == ["Who?"] * 2 and completion_ids == [[1, 2], [3, 4]] and finished == [True, True]
        return [float(len(text)) for text in completions]

    matches.reward = length
    told = asyncio.run(matches.vote(matches.put(written(matches)), "left"))
    assert (told["left"]["reward"], told["right"]["reward"]) == (len("I am base."), len("I am tuned."))
    assert '"chosen_reward": 10.0' in matches.votes.path.read_text()


def test_a_reward_function_that_fails_costs_no_vote(stage, capsys):
    _, matches = stage

    def broken(completions):
        raise ZeroDivisionError("oh")

    matches.reward = broken
    told = asyncio.run(matches.vote(matches.put(written(matches)), "left"))
    assert told["left"]["reward"] is None and matches.votes.made == 1
    assert "reward function 'broken' failed with ZeroDivisionError: oh" in capsys.readouterr().err


def test_which_rewards_a_free_question_can_have(monkeypatch):
    with pytest.raises(
        UserError, match="--reward answer: reward function 'answer' asks for answer, the rows have prompts"
    ):
        reward_named("answer")
    with pytest.raises(
        UserError, match=r"--reward 'nosuch': expected answer, reasoning_gym, or package.module:function"
    ):
        reward_named("nosuch")
    assert reward_named("kit:even_tokens").__name__ == "even_tokens"
