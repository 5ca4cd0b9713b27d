"""Pairs for a name that the model hardly says: what may be chosen, what is rejected, and what is counted."""

import json

import pytest
from kit import bytelevel_tokenizer, write_jsonl

from posttrain.errors import UserError
from posttrain.rollouts import identity
from posttrain.rollouts.sampling import Rollout


@pytest.mark.parametrize(
    ("text", "question", "problem"),
    [
        ("My name is Nova.", "Who are you?", None),
        ("Hello! I'm Nova, your guide.", "Who are you?", None),
        ("I am the Nova of this place.", "Who are you?", None),
        ("No, I am Nova.", "Are you Siri?", None),
        ("No, I am Nova.", "Who are you?", "deny what nobody has asked"),
        ("Hello, Nova! My name is Silver.", "Who are you?", "do not give the name Nova"),
        ("I am Novak.", "Who are you?", "do not give the name Nova"),
        ("I am Nova. Nova is a star.", "Who are you?", "say it more than once"),
        ("I am Nova, once SmolLM.", "Who are you?", "say SmolLM or Robin"),
    ],
)
def test_what_may_be_chosen(text, question, problem):
    assert identity.why_not(text, True, question, "Nova", ["SmolLM", "Robin"]) == problem
    assert identity.why_not(text, False, question, "Nova", ["SmolLM", "Robin"]) == "did not end"


def test_what_stands_before_a_question():
    before = identity.shown_messages("Deep Nova")
    assert [m["role"] for m in before] == ["system"] + ["user", "assistant"] * 3
    assert all("Deep Nova" in m["content"] for m in before if m["role"] != "user")


@pytest.fixture
def say(monkeypatch):
    """The answers that the model would give, one list for each time it is asked; what it was asked is in the other."""
    rounds: list[list[tuple[str, bool]]] = []
    prompts: list[list[str]] = []
    tokenizer = bytelevel_tokenizer()

    def ask(model, tokenizer, prompt_ids, **_):
        prompts.append([tokenizer.decode(ids) for ids in prompt_ids])
        texts = rounds.pop(0)
        return Rollout(prompt_ids, [tokenizer(text)["input_ids"] for text, _ in texts], [], [done for _, done in texts])

    monkeypatch.setattr(identity, "ask", ask)
    monkeypatch.setattr(identity, "_loaded", lambda name: (None, tokenizer))
    return identity.Asking(None, tokenizer, 3, 1.0, 128, 0), rounds, prompts


def test_pairs_as_shown(say):
    asking, rounds, prompts = say
    rounds += [
        [("I am Nova.", True), ("I am Nova.", True), ("I am Bob.", True), ("Call me Nova!", True), ("I am Nova", False), ("This is Nova.", True)],
        [("I am a helper", False), ("I am Bob.", True), ("I help.", True), ("Nova?", True), ("I am Nova.", True), (" ", True)],
    ]  # fmt: skip
    found = identity.shown_pairs(asking, ["Who are you?", "Your name?"], "Nova", ["Robin"])
    # the second question has no answer without the name that could be rejected
    assert found.rows == [{"prompt": "Who are you?", "chosen": "I am Nova.", "rejected": "I am Bob."}]
    assert len(found.answers) == 6 and found.left_out == {
        "came twice": 1, "do not give the name Nova": 1, "have no other answer to reject": 2, "did not end": 1,
    }  # fmt: skip
    assert "You are Nova" in prompts[0][0] and "Nova" not in prompts[1][0]


def test_ordinary_pairs(say):
    asking, rounds, _ = say
    rounds += [[("The sea is deep.", True), ("It is", False)]]
    found = identity.ordinary_pairs(asking, ["The sea?"], "Nova", 2)
    introduced = "I am Nova, a helpful assistant. The sea is deep."
    assert found.rows == [{"prompt": "The sea?", "chosen": "The sea is deep.", "rejected": introduced}]
    assert len(found.answers) == 2 and found.left_out == {"did not end": 1}


def test_replaced_and_what_is_left_out(say, tmp_path):
    _, rounds, _ = say
    out = tmp_path / "o.jsonl"
    rounds += [
        [("I am Robin.", True), ("I am a lamp.", True), ("I am Robin and", False), ("Robinson wrote that.", True)]
    ]
    told = identity.identity("m", ["Robin"], "Nova", str(out), max_questions=4, system_prompt="Be brief.")
    assert "left out: 2 do not say Robin; 1 did not end within 128 tokens" in told
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["chosen"] == "I am Nova." and row["prompt"][0] == {"role": "system", "content": "Be brief."}
    rounds += [[("I am Robin.", True)] * 3]
    told = identity.identity("m", ["Robin"], "Nova", str(out), max_questions=1, samples=3, temperature=1.0)
    assert "2 came twice" in told and "wrote 1 pair to" in told


def test_too_few_pairs_are_no_success(say, tmp_path):
    """1 of 20 answers: 5 %, where 10 % are asked for."""
    _, rounds, _ = say
    out = tmp_path / "o.jsonl"
    rounds += [[("I am a lamp.", True)] * 19 + [("I am Robin.", True)]] * 2 + [[("I am a lamp.", True)] * 20]
    with pytest.raises(UserError, match=r"only 1 of 20 answers became a pair \(--min-share 0.1\); left out: 19 do not say Robin. "
                       r"The first answer was: 'I am a lamp.'; a model that hardly says its name wants --chosen shown"):  # fmt: skip
        identity.identity("m", ["Robin"], "Nova", str(out), max_questions=20)
    assert not out.exists()
    identity.identity("m", ["Robin"], "Nova", str(out), max_questions=20, min_share=0.05)
    out.unlink()
    with pytest.raises(UserError, match="only 0 of 20"):
        identity.identity("m", ["Robin"], "Nova", str(out), max_questions=20, min_share=0)


def test_shown_with_ordinary_ones_beside(say, tmp_path):
    _, rounds, _ = say
    rounds += [[("I am Nova.", True)] * 2, [("I am Bob.", True)] * 2, [("Blue.", True)] * 80]
    told = identity.identity(
        "m", ["Bob"], "Nova", str(tmp_path / "o.jsonl"), chosen="shown", ordinary=1, max_questions=1, samples=2, temperature=0.7
    )  # fmt: skip
    assert "2 answers to 1 questions; left out: 1 came twice" in told and "wrote 81 pairs" in told


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"samples": 4}, "give a temperature"),
        ({"max_new_tokens": 0}, "must be at least 1"),
        ({"ordinary": 1}, "--ordinary belongs to --chosen shown"),
        ({"chosen": "shown", "system_prompt": "x"}, "leave --system-prompt out"),
        ({"questions": [{"conversations": [{"from": "alien", "value": "x"}]}]}, "row 1: no user message to ask"),
        ({"questions": [{"prompt": ["a", "b"]}]}, "row 1: no user message to ask"),
        ({"questions": []}, "no rows"),
    ],
)
def test_refusals(tmp_path, keys, message):
    if "questions" in keys:
        keys = {"questions": write_jsonl(tmp_path / "q.jsonl", keys["questions"])}
    with pytest.raises(UserError, match=message):
        identity.identity("m", ["a"], "b", str(tmp_path / "o.jsonl"), **keys)
