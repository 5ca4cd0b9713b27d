"""The table, the verdicts in words, report.md and the bars."""

import pytest
from told import ABOUT, results

from posttrain.evaluation import report
from posttrain.evaluation.results import Measured, Results
from posttrain.evaluation.scores import Outcome, proportion, ratio


def two_models():
    made = results([0] * 10 + [1] * 10, name="old")
    new = results([1] * 20, name="new").models[0]
    alone = ratio("kl", "far", [1.0] * 12, [2] * 12, "prompts", better="neither", unit="nats per token", note="a note")
    new.outcomes["drift"] = Outcome([alone], [{"part": "prompts", "prompt": [{"content": "last\nline"}]}] * 12)
    return Results(ABOUT, made.options, [*made.models, new])


def test_the_table_has_a_row_per_score_and_a_column_per_model():
    lines = report.table(two_models()).splitlines()
    assert lines[0] == "| score | old | new |  |"
    assert lines[2] == "| accuracy: right | 0.50 [0.30, 0.70] n=20 | 1.00 [0.84, 1.00] n=20 | higher is better |"
    assert lines[3] == "| accuracy: one | 1.500 [nan, nan] n=1 | 1.500 [nan, nan] n=1 | higher is better |"
    assert lines[4] == "| drift: kl |  | 0.500 [0.500, 0.500] n=12 | nats per token, a note |"


def test_what_is_printed():
    said = report.said(two_models())
    assert (
        "new against old, accuracy right: +0.500 [+0.2" in said
        and "] better (10 only by new, 0 only by old, p = 0.002)" in said
    )
    assert "of 2, expect 0.1 by chance" in said and said.count("accuracy: read me") == 1
    alone = report.said(Results(ABOUT, {}, two_models().models[:1]))
    assert "against" not in alone and "by chance" not in alone


def test_the_report(tmp_path):
    report.write(tmp_path / "report.md", two_models())
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "- accuracy, right: right ones (n = 20)." in text and "- accuracy: read me" in text
    assert "**accuracy, problems: q0**\n\n- old: `a0`\n- new: `a1`" in text and "q3" not in text  # three of each part


@pytest.mark.draws
def test_the_bars(tmp_path):
    report.plot(tmp_path / "scores.png", two_models())
    assert (tmp_path / "scores.png").stat().st_size > 5000
    single = Measured("x" * 40, {}, {"s": Outcome([proportion("p", "", [1], "a")], [])})
    report.plot(tmp_path / "one.png", Results(ABOUT, {}, [single]))
    assert (tmp_path / "one.png").stat().st_size > 2000
