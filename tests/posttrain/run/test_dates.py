"""A chat template that writes today's date (Llama 3, gpt-oss): a run keeps the date of its start."""

import shutil
from datetime import datetime

import pytest
from kit import CHATML, bytelevel_tokenizer, run_loop, tiny_folder

from loops import sft
from posttrain.run import training
from posttrain.tokens.rendering import render

ROWS = [{"prompt": f"Is {i} even?", "completion": "Yes." if i % 2 == 0 else "No."} for i in range(10)]
DATED = "{{ strftime_now('%d %B %Y') }}" + CHATML


@pytest.fixture
def today(monkeypatch):
    def at(day):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime(2024, 1, day, 23, 59)

        monkeypatch.setattr(training, "datetime", Clock)

    return at


def test_a_run_that_is_killed_before_midnight_goes_on_after_it(tmp_path, today, capfd):
    model = tiny_folder(tmp_path / "llama", tokenizer=bytelevel_tokenizer(DATED))

    def run(name, **changes):
        saving = {"training__max_steps": 6, "training__save_every": 2, "output__overwrite": False}
        return run_loop(sft, model, tmp_path / name, rows=ROWS, **saving, **changes)

    losses = {}
    for day in (1, 2):
        today(day)
        losses[day] = [row["loss"] for row in run(f"day{day}").metrics]
    assert losses[1] != losses[2]  # the date is part of what is learned from …
    assert "writes today's date: it stays that of the run's start" in capfd.readouterr().err
    shutil.rmtree(tmp_path / "day1/run/model")
    shutil.rmtree(tmp_path / "day1/run/checkpoints/step_6")
    again = run("day1", resume=True)
    assert [row["loss"] for row in again.metrics] == losses[1]  # … and a resumed run has its own
    here = render(again.tokenizer, [{"role": "user", "content": "a"}], generate=True).text
    assert here.startswith(datetime.now().strftime("%d %B %Y"))  # outside of a loop it is today again
