"""Pairs for a name that the model hardly says: what may be chosen, what is rejected, and what is counted."""

import pytest
from kit import bytelevel_tokenizer

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
    before = identity.shown("Deep Nova")
    assert [m["role"] for m in before] == ["system"] + ["user", "assistant"] * 3
    assert all("Deep Nova" in m["content"] for m in before if m["role"] != "user")


@pytest.fixture
def said(monkeypatch):
    """The answers that the model would give, one list per time it is asked: (text, did it end)."""
    rounds: list[list[tuple[str, bool]]] = []
    prompts = []
    tokenizer = bytelevel_tokenizer()

    def ask(model, tokenizer, prompt_ids, **_):
        prompts.append([tokenizer.decode(ids) for ids in prompt_ids])
        texts = rounds.pop(0)
        return Rollout(prompt_ids, [tokenizer(text)["input_ids"] for text, _ in texts], [], [done for _, done in texts])

    monkeypatch.setattr(identity, "ask", ask)
    return tokenizer, rounds, prompts


def test_pairs(said):
    tokenizer, rounds, prompts = said
    rounds += [
        [("I am Nova.", True), ("I am Nova.", True), ("I am Bob.", True), ("Call me Nova!", True), ("I am Nova", False), ("This is Nova.", True)],
        [("I am a helper", False), ("I am Bob.", True), ("I help.", True), ("Nova?", True), ("I am Nova.", True), (" ", True)],
    ]  # fmt: skip
    found = identity.pairs(None, tokenizer, ["Who are you?", "Your name?"], "Nova", ["Robin"], samples=3, temperature=1.0, max_new_tokens=9, seed=0)  # fmt: skip
    # the second question has no answer without the name that could be rejected
    assert found.rows == [{"prompt": "Who are you?", "chosen": "I am Nova.", "rejected": "I am Bob."}]
    assert found.answers == 6 and found.left_out == {
        "came twice": 1, "do not give the name Nova": 1, "have no other answer to reject": 2, "did not end": 1,
    }  # fmt: skip
    assert "You are Nova" in prompts[0][0] and "Nova" not in prompts[1][0]


def test_ordinary_pairs(said):
    tokenizer, rounds, _ = said
    rounds += [[("The sea is deep.", True), ("It is", False)]]
    found = identity.ordinary_pairs(None, tokenizer, ["The sea?"], "Nova", samples=2, temperature=1.0, max_new_tokens=9, seed=0)  # fmt: skip
    introduced = "I am Nova, a helpful assistant. The sea is deep."
    assert found.rows == [{"prompt": "The sea?", "chosen": "The sea is deep.", "rejected": introduced}]
    assert found.answers == 2 and found.left_out == {"did not end": 1}
