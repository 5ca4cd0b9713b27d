"""Suite accuracy, on a model that says what it is told to."""

import json

import pytest
from told import Told, scores

from posttrain.config.suites import Accuracy as Options
from posttrain.errors import UserError
from posttrain.evaluation.accuracy import Accuracy
from posttrain.rollouts import rewards

ROWS = [{"question": f"{i} + 1?", "answer": f"… #### {i + 1}"} for i in range(4)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "sums.jsonl", ROWS)


@pytest.mark.parametrize(
    ("text", "number"),
    [("#### 1,234", 1234), ("#### -3", -3), ("#### $18.00", 18), (r"\boxed{42}" + "x" * 300, 42),
     (r"\boxed{41} \boxed{42}", None), ("", None)],
)  # fmt: skip
def test_the_answer_parser(text, number):
    """The trust list's own row; rollouts/test_rewards.py has more. There is one parser, that of the rewards."""
    assert rewards.extract_answer(text) == number


def test_greedy_answers_are_counted(data):
    says = {"0 + 1": ("#### 1", True), "1 + 1": ("#### 1", True), "2 + 1": ("three", True), "3 + 1": ("#### 4", False)}
    subject = Told(lambda prompt, k: next(said for asked, said in says.items() if asked in prompt))
    outcome = Accuracy(Options(data=data))(subject)
    found = scores(outcome)
    # right: the first alone (the last never ended); unread: "three"; ended: three of four
    assert [found[name].items for name in ("right", "unread", "ended")] == [[1, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 0]]
    assert found["unread"].better == "lower" and set(found) == {"right", "unread", "ended"}
    assert subject.asked == [(4, 1, 0.0)]
    first, _, third, last = outcome.records
    assert first["prompt"] == "0 + 1?" and first["read"] == "1" and third["read"] is None
    assert last["answers"] == [{"text": "#### 4", "finished": False, "tokens": last["answers"][0]["tokens"], "logp": last["answers"][0]["logp"]}]  # fmt: skip


def test_samples_are_counted_by_problem(data):
    """Of 4 samples: of problem 0 all are right, of problem 1 one, of the others none."""

    def says(prompt, k):
        number = int(prompt.split(" + ")[0][-1])
        return f"#### {number + 1 if number == 0 or (number == 1 and k == 3) else 99}", True

    subject = Told(says)
    found = scores(Accuracy(Options(data=data, samples=4, pass_at=2, temperature=0.7))(subject))
    assert subject.asked == [(4, 1, 0.0), (4, 4, 0.7)]
    assert found["sampled"].items == [1.0, 0.25, 0.0, 0.0] and found["sampled"].value == 0.3125  # 5 of 16
    # pass@2 of 4 samples with one right: 1 − C(3,2)/C(4,2) = 1 − 3/6
    assert found["pass@2"].items == [1.0, 0.5, 0.0, 0.0] and found["pass@2"].n == 4
    assert found["sampled"].high - found["sampled"].low > 0.5  # of 4 problems, not of 16 samples


def brevity(completions, limit):
    return [1.0 if len(c) <= n else 0.25 for c, n in zip(completions, limit, strict=True)]


def test_a_reward_function_of_ones_own(tmp_path):
    data = write(tmp_path / "short.jsonl", [{"prompt": p, "limit": n} for p, n in (("Say a.", 1), ("Say b.", 10), ("Say c.", 2))])  # fmt: skip
    subject = Told(lambda prompt, k: ("four", True))
    options = {"data": data, "reward": f"{__name__}:brevity"}
    found = scores(Accuracy(Options(**options))(subject))
    assert found["right"].items == [0, 1, 0] and found["reward"].items == [0.25, 1.0, 0.25] and "unread" not in found
    assert scores(Accuracy(Options(**options, right_above=0.2))(subject))["right"].items == [1, 1, 1]


def test_a_task_of_reasoning_gym_has_its_own_verifier():
    pytest.importorskip("reasoning_gym")
    suite = Accuracy(Options(data="reasoning-gym:chain_sum", task={"size": 3, "max_terms": 2, "min_terms": 2}))
    wanted = {row["columns"]["question"]: row["columns"]["answer"] for row in suite.rows.rows}
    says = lambda prompt, k: (f"So <answer>{next(a for q, a in wanted.items() if q in prompt)}</answer>", True)  # noqa: E731
    assert scores(suite(Told(says)))["right"].items == [1, 1, 1]
    assert scores(suite(Told(lambda prompt, k: ("<answer>x</answer>", True))))["right"].items == [0, 0, 0]


def test_what_cannot_be_measured_is_refused_before_any_model_is_there(tmp_path, data):
    with pytest.raises(UserError, match=r"no.jsonl, row 1: the reward 'answer' needs a column `answer`; found limit"):
        Accuracy(Options(data=write(tmp_path / "no.jsonl", [{"prompt": "a", "limit": 1}])))
    with pytest.raises(UserError, match=r"asks for limit, the rows have question, answer"):
        Accuracy(Options(data=data, reward=f"{__name__}:brevity"))
    with pytest.raises(UserError, match=r"--accuracy.reward 'nonsense': expected answer"):
        Accuracy(Options(data=data, reward="nonsense"))
