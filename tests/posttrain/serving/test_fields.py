"""What a client may ask: types are taken as they are, and nothing is ignored. (The sentences: test_api.py.)"""

import pytest
from pydantic import ValidationError

from posttrain.serving.fields import AskedChat, AskedCompletion, AskedSimply

HELLO = [{"role": "user", "content": "Hello."}]


def test_what_is_meant_when_nothing_is_said():
    chat = AskedChat(messages=HELLO)
    assert (chat.model, chat.temperature, chat.n, chat.stops, chat.longest, chat.stream) == (
        None,
        1.0,
        1,
        [],
        None,
        False,
    )
    assert AskedCompletion(prompt="a").max_tokens == 16
    assert AskedSimply(prompt="a").temperature == 0.0


def test_one_prompt_or_several():
    for given, prompts in (
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([5, 6], [[5, 6]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
        (["a", [5]], ["a", [5]]),
    ):
        assert AskedCompletion.model_validate({"prompt": given}).prompts == prompts


@pytest.mark.parametrize(
    "prompt", ["", [], [""], [[]], [5, "a"], [True], [1.0], [[5], ""], {"a": 1}, None, [2**31], [[5], [-1]]]
)
def test_no_prompt(prompt):
    with pytest.raises(ValidationError):
        AskedCompletion.model_validate({"prompt": prompt})


@pytest.mark.parametrize("changes", [{"n": "1"}, {"n": 1.0}, {"stream": "yes"}, {"seed": -1}, {"seed": 2**40}, {"stop": ["a"] * 17}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"logit_bias": {}}, {"tools": []}, {"top_p": 0}, {"top_p": "1"}, {"presence_penalty": True}])  # fmt: skip
def test_nothing_is_bent_into_shape(changes):
    with pytest.raises(ValidationError):
        AskedChat.model_validate({"messages": HELLO, **changes})


def test_either_name_of_the_longest_answer():
    assert (
        AskedChat(messages=HELLO, max_tokens=5).longest
        == AskedChat(messages=HELLO, max_completion_tokens=5).longest
        == 5
    )
    assert AskedChat(messages=HELLO, max_tokens=5, max_completion_tokens=5).longest == 5


def test_content_in_parts():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}]
    assert AskedChat.model_validate({"messages": [{"role": "user", "content": parts}]}).messages[0].plain() == HELLO[0]
