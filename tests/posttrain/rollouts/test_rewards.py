from decimal import Decimal

import pytest

from posttrain.errors import UserError
from posttrain.rollouts import rewards


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#### 1,234", 1234),
        ("#### -3", -3),
        ("#### −3", -3),
        ("#### $18.00", 18),
        ("So 3 + 4 = 7.\n#### 7", 7),
        ("#### 7 apples", 7),
        ("#### 3\nno, wait\n#### 4", 4),
        ("#### 0.5", Decimal("0.5")),
        (r"\boxed{42}" + " and then much more talk" * 20, 42),
        (r"\boxed{42} or rather \boxed{42.0}", 42),
        (r"\boxed{41} or \boxed{42}", None),
        (r"\boxed{42} or \boxed{\frac{1}{2}}", None),
        (r"\boxed{\$18} and \boxed{18}", 18),
        (r"\boxed{1\,234}", 1234),
        ("#### **18**", 18),
        ("#### +5", 5),
        ("#### 18 dollars per day.", 18),
        ("#### 3/4", None),
        ("#### 2 + 2", None),
        ("#### 5 or 6", None),
        ("#### 10:30", None),
        ("#### 1e3", None),
        ("the answer is 12", None),
        ("####", None),
        ("#### many", None),
        ("", None),
    ],
)
def test_extract_answer(text, expected):
    assert rewards.extract_answer(text) == expected


def test_the_built_in_reward_wants_the_right_number_and_an_ended_turn():
    completions = ["#### 11", "#### 11", "#### 12", "no idea"]
    assert rewards.answer(completions, ["11"] * 4, [True, False, True, True]) == [1.0, 0.0, 0.0, 0.0]
    assert rewards.answer(["#### 72"], ["48 + 24 = <<48+24=72>>72\n#### 72"], [True]) == [1.0]
    with pytest.raises(UserError, match="must hold a number"):
        rewards.answer(["#### 1"], ["seventy"], [True])


def brevity(completions):
    return [-float(len(c)) for c in completions]


def trl_style(completions, **columns):
    return [float(a == "x") for a in columns["answer"]]


def shy(completions, answer):
    return [None if a == "?" else 1.0 for a in answer]


AVAILABLE = {
    "completions": ["ab", "c"],
    "answer": ["x", "?"],
    "prompts": [[], []],
    "finished": [True, True],
    "completion_ids": [[1], [2]],
}


def test_functions_are_called_with_what_they_ask_for_and_weighted():
    assert rewards.score([brevity], None, AVAILABLE) == ([-2.0, -1.0], {})
    # the weighted sum, and each function's own sum and count without its weight
    parts = {"reward/brevity": (-3.0, 2), "reward/trl_style": (1.0, 2)}
    assert rewards.score([brevity, trl_style], [0.5, 2.0], AVAILABLE) == ([-1.0 + 2.0, -0.5], parts)
    assert set(rewards.score([brevity, brevity], None, AVAILABLE)[1]) == {"reward/brevity", "reward/brevity_2"}


def test_none_abstains_and_all_abstaining_is_an_error():
    totals, parts = rewards.score([shy, brevity], None, AVAILABLE)
    assert totals == [-1.0, -1.0] and parts["reward/shy"][1] == 1
    with pytest.raises(UserError, match="returned None for completion 1"):
        rewards.score([shy], None, AVAILABLE)


def test_find():
    assert rewards.find("answer") == [rewards.answer]
    assert rewards.find(["answer", "posttrain.rollouts.rewards:answer"]) == [rewards.answer] * 2
    for name in ("correctness", "no.such.module:f", "posttrain.rollouts.rewards:nothing", ":f"):
        with pytest.raises(UserError, match=r"grpo.reward"):
            rewards.find(name)


def broken(completions):
    raise KeyError("key")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda completions: 1.0, "must return a list of floats"),
        (lambda completions: None, "must return a list of floats"),
        (lambda completions: ["a", "b"], "expected a number"),
        (broken, "'broken' failed with KeyError: 'key'"),
    ],
)
def test_what_a_function_must_not_do(function, message):
    with pytest.raises(UserError, match=message):
        rewards.score([function], None, AVAILABLE)


def test_callables_names_and_weights_go_through_one_door():
    assert rewards.find(brevity) == [brevity] and rewards.find([brevity, "answer"], [1, 2]) == [brevity, rewards.answer]
    with pytest.raises(UserError, match="1 entries for 2"):
        rewards.find([brevity, "answer"], [1.0])
    with pytest.raises(UserError, match="not a function"):
        rewards.find("posttrain.rollouts.rewards:NUMBER")


def test_bad_functions():
    with pytest.raises(UserError, match="returned nan for completion 1, expected a number: 'c'"):
        rewards.score([lambda completions: [0.0, float("nan")]], None, AVAILABLE)
    with pytest.raises(UserError, match="asks for level"):
        rewards.score([lambda completions, level: [0.0]], None, AVAILABLE)
    with pytest.raises(UserError, match="returned 1 rewards for 2 completions"):
        rewards.score([lambda completions: [0.0]], None, AVAILABLE)


def test_a_misspelt_module_is_asked_for_where_it_would_lie(tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"grpo.reward 'my_modul:f': No module named 'my_modul'; is my_modul.py in this"
    ):
        rewards.function_named("my_modul:f", "grpo.reward")
    (tmp_path / "mine_that_imports.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=r"No module named 'no_such_library'$"
    ):  # the module is there: its import is not
        rewards.function_named("mine_that_imports:f", "grpo.reward")
