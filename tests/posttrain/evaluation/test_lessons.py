"""What is measured of a real model: three suites, and what else can be read off their records."""

import json
from types import SimpleNamespace

import pytest
from told import Told

from posttrain.data import questions
from posttrain.evaluation import lessons
from posttrain.evaluation.results import Measured
from posttrain.evaluation.scores import Outcome, proportion

REAL = SimpleNamespace(task={"max_terms": 3}, problems=10, new_name="Nova", old_name="SmolLM")


def test_the_three_suites(tmp_path):
    found = lessons.options(REAL, tmp_path / "ordinary.jsonl")
    assert list(found) == ["accuracy", "identity", "perplexity"]
    assert found["accuracy"].task == {"max_terms": 3, "size": 10, "seed": 0} and found["accuracy"].samples == 1
    assert (found["identity"].name, found["identity"].old) == ("Nova", ["SmolLM"])
    assert found["perplexity"].data == str(tmp_path / "ordinary.jsonl")


def test_what_it_says_before_the_first_lesson():
    """Up to the last whole sentence; of an answer without one there is nothing to keep."""
    told = Told(lambda prompt, k: ("Half a" if "dinner" in prompt else "Soup! Is it? And half a", True))
    rows = lessons.ordinary_rows(told)
    assert told.asked == [(40, 1, 0.7)]
    assert len(rows) == 39 and rows[0] == {"prompt": questions.ORDINARY_TEST[1], "completion": "Soup! Is it?"}


def measured() -> Measured:
    """Ten problems, of which the first four show a step; their answers have 1, 2, … 10 tokens: 5.5 in the mean."""
    records = [
        {"part": "problems", "prompt": f"p{n}", "answers": [{"text": f"g{n}"}],
         "sampled": [{"text": f"1 + {n} = 5" if n < 4 else "#### 5", "tokens": n + 1}]}
        for n in range(10)
    ]  # fmt: skip
    asked = [
        {"part": part, "prompt": f"{part}{n}", "answers": [{"text": f"said {n}"}]}
        for part in ("identity", "ordinary", "closed")
        for n in range(4)
    ]
    scores = [proportion("right", "", [1] * 10, "problems")]
    names = [proportion("new_name", "", [1, 0, 0, 0], "identity")]
    return Measured("sft", {}, {"accuracy": Outcome(scores, records), "identity": Outcome(names, asked)})


def test_what_is_read_off_the_records():
    found = measured()
    worked, length = lessons.score(found, "worked"), lessons.score(found, "length")
    assert (worked.value, worked.n, length.value) == (0.4, 10, 5.5)
    assert lessons.score(found, "right").value == 1 and lessons.score(found, "new_name").items == [1, 0, 0, 0]
    with pytest.raises(StopIteration):
        lessons.score(found, "nothing")
    assert json.dumps(worked.as_json())


def test_the_ten_questions():
    """Spread over each part: of ten problems every third, of four questions the first ones."""
    questions_and_answers = lessons.ten_answers(measured())
    assert [q for q, _ in questions_and_answers] == [
        "p0", "p3", "p6", "identity0", "identity1", "identity2", "closed0", "closed2", "ordinary0", "ordinary2",
    ]  # fmt: skip
    assert [a for _, a in questions_and_answers][:4] == ["g0", "g3", "g6", "said 0"]


def test_the_clock_of_a_resumed_run_begins_again():
    """Steps at 2 and 5 s, then, resumed, at 3 and 4 s: 5 + 4."""
    assert lessons.seconds_of([{"seconds": s} for s in (2.0, 5.0, 3.0, 4.0)]) == 9.0
