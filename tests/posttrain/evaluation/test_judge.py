"""Suite judge, with models and judges that say what they are told to."""

import json
import math

import pytest
import torch
from told import Told, results, scores

from posttrain.config.suites import Judge as Options
from posttrain.errors import UserError
from posttrain.evaluation import results as files
from posttrain.evaluation.comparing import difference
from posttrain.evaluation.judge import Judge, of
from posttrain.evaluation.judging import of_orders


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def options(tmp_path):
    prompts = [f"Question {i}?" for i in range(4)]
    against = write(tmp_path / "earlier.jsonl", [{"prompt": p, "answer": "so-so"} for p in prompts])
    return {"data": write(tmp_path / "p.jsonl", [{"prompt": p} for p in prompts]), "against": against}


def reads(text):
    """Prefers what holds "good", then what stands first; "so-so" to "bad"."""
    worth = lambda answer: 2.0 * ("good" in answer) - 2.0 * ("bad" in answer)  # noqa: E731
    a, b = text.split("[A]\n")[1].split("\n\n[B]\n")
    return torch.tensor([worth(a) + 1.0 if text.endswith("A") else worth(b.split("\n\n")[0])])


def test_wins_ties_and_places(options):
    """good, bad, so-so, so-so against so-so: a win, a loss, and two pairs on which the judge goes by the place."""
    says = lambda p, k: (["good", "bad", "so-so", "so-so"][int(p.split("Question ")[1][0])], True)  # noqa: E731
    outcome = Judge(Options(**options, model="tiny-base"))(Told(says), judge=Told(reads=reads, name="j"))
    found = scores(outcome)
    assert found["win_rate"].items == [1.0, 0.0, 0.5, 0.5] and found["win_rate"].value == 0.5
    assert found["ties"].items == [0, 0, 1, 1] and found["first_place"].items == [0.5, 0.5, 1.0, 1.0]
    # orders of the first pair: 2 + 1 and 2 − 1: (σ(3) + σ(1))/2 = (.952574 + .731059)/2
    assert found["preferred"].items[0] == pytest.approx(0.841816, abs=1e-6)
    assert (
        "j gave 75% of its 8 verdicts to the first place, and contradicted itself on 2 of 4 pairs" in outcome.remarks[1]
    )
    assert [r["longer_by"] for r in outcome.records] == [-1, -2, 0, 0] and outcome.records[0]["against"] == "so-so"
    assert all(score.n == 4 for score in found.values())


def test_another_model_answers_the_same_prompts(options):
    other = Told(lambda p, k: ("bad", True), name="other")
    subject = Told(lambda p, k: ("good", True))
    found = scores(Judge(Options(**options, model="tiny-base"))(subject, against=other, judge=Told(reads=reads)))
    assert (
        found["win_rate"].value == 1.0 and other.asked == [(4, 1, 0.0)] and "against other" in found["win_rate"].about
    )


def test_a_judge_without_room_is_refused_before_anybody_answers(options):
    class Short(Told):
        limit = 200

    subject = Told(lambda p, k: pytest.fail("it was asked"))
    with pytest.raises(
        UserError, match=r"j, the judge, reads at most 200 tokens, and prompt 1 with answers of up to 256"
    ):
        Judge(Options(**options, model="tiny-base"))(subject, judge=Short(reads=reads, name="j"))


def test_at_equal_length_a_taste_for_length_is_gone():
    """σ(2·tanh(Δ/σ_Δ)) of the verdicts are wins, answers mostly longer: the raw rate flatters, the other does not."""
    longer = [-40 + 2 * i for i in range(100)]
    spread = math.sqrt((100**2 - 1) / 12) * 2
    found = []
    for by in longer:
        p = 1 / (1 + math.exp(-2 * math.tanh(by / spread)))
        found += [of_orders(1.0, 1.0)] * round(100 * p) + [of_orders(-1.0, -1.0)] * (100 - round(100 * p))
    made = {s.name: s for s in of(found, [by for by in longer for _ in range(100)], "b", "j")}
    assert made["win_rate"].value > 0.7 and made["win_rate_lc"].value == pytest.approx(0.5, abs=0.01)
    assert made["win_rate_lc"].low < 0.5 < made["win_rate_lc"].high < made["win_rate"].low


def test_two_models_are_compared_in_pairs():
    longer = [(-1) ** i * i for i in range(40)]
    worse, better = ([of_orders(s, s) for s in signs] for signs in ([-1.0] * 20 + [1.0] * 20, [-1.0] * 5 + [1.0] * 35))
    a, b = ({s.name: s for s in of(found, longer, "b", "j")} for found in (worse, better))
    for name in ("win_rate", "win_rate_lc"):
        assert difference("judge", a[name], b[name], ("A", "B")).verdict == "better"


def test_an_evaluation_is_earlier_answers(options, tmp_path):
    prompts = [f"Question {i}?" for i in range(4)]
    files.write(tmp_path / "out", results([1, 0, 1, 0], prompts=prompts)) if (
        tmp_path / "out"
    ).mkdir() is None else None
    suite = Judge(Options(data=options["data"], against=str(tmp_path / "out"), model="tiny-base"))
    assert suite.earlier == ["a1", "a0", "a1", "a0"]


def test_what_is_wrong_is_said_before_any_model_is_there(options, tmp_path):
    with pytest.raises(ValueError, match="expected one judge"):
        Options(**options)
    with pytest.raises(UserError, match=r"--judge.against './none': cannot be loaded: no such folder"):
        Judge(Options(data=options["data"], against="./none", model="tiny-base"))
    with pytest.raises(UserError, match=r"--judge.model './none'"):
        Judge(Options(**options, model="./none"))
