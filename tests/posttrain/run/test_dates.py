"""A chat template that writes today's date (Llama 3, gpt-oss): a run keeps the date of its start."""

import shutil
from datetime import datetime

import pytest
from small import CHATML, bytelevel_tokenizer, folder

from loops import sft
from posttrain import ROOT
from posttrain.config import load
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
    model = folder(tmp_path / "llama", tokenizer=bytelevel_tokenizer(DATED))

    def config(name, **changes):
        return load(
            ROOT / "configs/sft_tiny.yaml",
            {"model.name": model, "output.dir": str(tmp_path / name), "output.samples": 0, "training.max_steps": 6,
             "training.batch_size": 4, "training.save_every": 2, **changes},
        )  # fmt: skip

    losses = {}
    for day in (1, 2):
        today(day)
        losses[day] = [row["loss"] for row in sft.train(config(f"day{day}"), rows=ROWS).metrics]
    assert losses[1] != losses[2]  # the date is part of what is learned from …
    assert "writes today's date: it stays that of the run's start" in capfd.readouterr().err
    shutil.rmtree(tmp_path / "day1/model")
    shutil.rmtree(tmp_path / "day1/checkpoints/step_6")
    again = sft.train(config("day1", resume=True), rows=ROWS)
    assert [row["loss"] for row in again.metrics] == losses[1]  # … and a resumed run has its own
    here = render(again.tokenizer, [{"role": "user", "content": "a"}], generate=True).text
    assert here.startswith(datetime.now().strftime("%d %B %Y"))  # outside of a loop it is today again
