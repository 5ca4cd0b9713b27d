"""A bar on a terminal, plain lines elsewhere, and only the main process speaks."""

import sys

from posttrain.run import progress
from posttrain.run.progress import Progress


def row(step, **more):
    return {"step": step, "loss": 1.23456, "tokens_per_second": 3456.7} | more


def test_plain_lines_ten_a_run(capsys, monkeypatch):
    monkeypatch.setattr(progress.time, "perf_counter", iter(range(0, 1000, 3)).__next__)  # three seconds a step
    shown = Progress(main=True)
    shown.begin("dpo", 0, 40)
    for step in range(1, 41):
        shown.show(row(step, accuracy=0.75))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0] == "dpo step 4/40  loss 1.23  accuracy 0.75  3,457 tokens/s, 1:48 left"  # 36 steps x 3 s = 108 s
    assert lines[-1] == "dpo step 40/40  loss 1.23  accuracy 0.75  3,457 tokens/s"


def test_time_left_of_a_resumed_run_counts_its_own_steps(capsys, monkeypatch):
    monkeypatch.setattr(progress.time, "perf_counter", iter([100.0, 102.0]).__next__)
    shown = Progress(main=True)
    shown.begin("sft", 5, 10)
    shown.show(row(6))  # one step in two seconds, four to go
    assert capsys.readouterr().err.strip().endswith("0:08 left")


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("CI", raising=False)
    shown = Progress(main=True)
    shown.begin("grpo", 2, 4)
    shown.show(row(3, reward=0.5))
    shown.say("a line")
    shown.end()
    err = capsys.readouterr().err
    assert "grpo:  75%" in err and "3/4" in err and "reward 0.5" in err and "3,457 tokens/s" in err and "a line" in err


def test_the_others_are_silent(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("CI", raising=False)
    shown = Progress(main=False)
    shown.begin("sft", 0, 1)
    shown.show(row(1))
    shown.say("a line")
    shown.end()
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_the_first_score_of_the_suites_stays_until_the_next(capsys):
    shown = Progress(main=True)
    shown.begin("sft", 0, 2)
    scores = {"eval/accuracy.right": 0.42, "eval/accuracy.right/low": 0.3, "eval/identity.new_name": 1.0}
    shown.note({"step": 0} | scores)
    shown.show(row(1))
    shown.note(row(2, **scores | {"eval/accuracy.right": 0.5}))
    shown.show(row(2))
    lines = capsys.readouterr().err.splitlines()
    assert ["accuracy.right 0.42 " in lines[0], "accuracy.right 0.5 " in lines[1]] == [True, True]
    assert "identity" not in lines[0] + lines[1]
