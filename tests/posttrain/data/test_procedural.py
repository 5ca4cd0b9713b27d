"""reasoning-gym:TASK: rows of either split never meet, the task's verifier is the reward, what is wrong is said."""

import importlib.util
import sys
import types

import pytest
from kit import rows_for

from posttrain.config import load
from posttrain.data import procedural
from posttrain.errors import UserError
from posttrain.rollouts.rewards import reasoning_gym
from posttrain.tiny.data import held_out


class Sums(list):
    """Stands for a task of the library: problem i of seed s is drawn from s + i."""

    def __init__(self, size, seed, most=50):
        if most < 1:
            raise AssertionError("most must be >= 1\nand more")
        numbers = [(seed + i) % most for i in range(size)]
        super().__init__({"question": f" {n} + 1 = ", "answer": str(n + 1), "metadata": {"n": n}} for n in numbers)

    def score_answer(self, answer, entry):
        return 1.0 if answer == str(entry["metadata"]["n"] + 1) else 0.5 if entry["answer"] in answer else 0.0


@pytest.fixture
def gym(monkeypatch):
    library, factory = types.ModuleType("reasoning_gym"), types.ModuleType("reasoning_gym.factory")
    library.create_dataset = lambda name, size, seed, **own: Sums(size, seed, **own)
    factory.DATASETS = {"sums": Sums, "others": None}
    monkeypatch.setitem(sys.modules, "reasoning_gym", library)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
    procedural.generator.cache_clear()
    yield
    procedural.generator.cache_clear()


def test_train_and_test_share_no_question(gym):
    train = procedural.rows("reasoning-gym:sums", "train", {"size": 60})
    test = procedural.rows("reasoning-gym:sums", "test", {"size": 20})
    assert len(train) == 60 and len(test) == 20
    assert not {row["question"] for row in train} & {row["question"] for row in test}
    assert all(held_out(row["question"]) for row in test) and train[0]["question"].endswith(" + 1 =")
    assert procedural.rows("reasoning-gym:sums", "train", {"size": 60}) == train
    wide = {"most": 10**9, "size": 60}
    other = procedural.rows("reasoning-gym:sums", "train", wide | {"seed": 1})
    assert not {r["question"] for r in other} & {
        r["question"] for r in procedural.rows("reasoning-gym:sums", "train", wide)
    }


@pytest.mark.parametrize("method", ["sft", "grpo", "ppo", "best-of-k"])
def test_rows_of_every_loop(gym, method):
    rows = rows_for(method, name="reasoning-gym:sums", task={"size": 5})
    assert len(rows) == 5
    if method == "sft":
        question, answer = (m["content"] for m in rows.rows[0]["messages"])
        assert int(question.split()[0]) + 1 == int(answer)
        assert rows.read == ["5 rows as question + answer (GSM8K) from reasoning-gym:sums (columns not used: problem)"]
    else:
        assert rows.rows[0]["columns"]["problem"]["task"] == "sums"


def test_the_reward_is_the_verifier(gym):
    """3 + 1: right behind ####, in <answer>, in a box, alone; half where the verifier finds it inside; unended is 0."""
    problem = next(
        r["problem"] for r in procedural.rows("reasoning-gym:sums", "train", {"most": 5}) if r["answer"] == "4"
    )
    texts = [
        "So 3 + 1 = 4.\n#### 4",
        "<answer>3</answer> no, <answer>4</answer>",
        "\\boxed{4}",
        " 4\n",
        "it is 4",
        "5",
        "4",
    ]
    ended = [True] * 6 + [False]
    assert reasoning_gym(texts, [problem] * 7, ended) == [1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0]


def test_what_is_wrong_is_said(gym, monkeypatch):
    for name, split, task, words in [
        ("reasoning-gym:sum", "train", {}, "no such task; reasoning-gym has others, sums"),
        ("reasoning-gym:sums", "dev", {}, "has the splits train and test, got 'dev'"),
        ("reasoning-gym:sums", "train", {"most": 0}, "data.task of reasoning-gym:sums: most must be >= 1$"),
        ("reasoning-gym:sums", "train", {"other": 0}, "unexpected keyword argument 'other'"),
        ("reasoning-gym:sums", "train", {"size": 0}, "data.task.size of .*: expected a whole number, got 0"),
        ("reasoning-gym:sums", "train", {"seed": "x"}, "data.task.seed of .*: expected a whole number"),
        ("reasoning-gym:sums", "test", {"most": 1, "size": 2}, "0 of 2 rows for the split test among 400 problems"),
    ]:
        with pytest.raises(UserError, match=words):
            procedural.rows(name, split, task)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    procedural.generator.cache_clear()
    with pytest.raises(UserError, match=r"needs an extra .*: pip install -r requirements-tasks.txt"):
        procedural.rows("reasoning-gym:sums", "train", {})
    with pytest.raises(UserError, match="task belongs to name: reasoning-gym:TASK"):
        load(None, {"model.name": "m", "data.name": "a.jsonl", "data.task.size": "3"}, method="sft")
    assert load(None, {"model.name": "m", "data.name": "reasoning-gym:sums", "data.task.size": "3"}, method="sft").data.task == {"size": 3}  # fmt: skip


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="pip install -r requirements-tasks.txt")
@pytest.mark.parametrize("task", ["chain_sum", "leg_counting", "letter_counting", "spell_backward", "countdown"])
def test_the_library_itself(task):
    procedural.generator.cache_clear()
    for row in procedural.rows(f"reasoning-gym:{task}", "test", {"size": 5}):
        assert reasoning_gym([row["answer"], "?"], [row["problem"]] * 2, [True, True])[0] == 1.0
