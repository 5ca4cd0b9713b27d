"""The three lessons, on small models without a network: what is made, measured, kept and gone on with; and the first
minutes on the real one, killed twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kit import environment, yaml_config

from posttrain import ROOT, real
from posttrain.errors import UserError
from posttrain.models import fetching
from posttrain.run import checkpoint_files

SMALL = {
    "real.sums": 16, "real.keep": 1, "real.pairs": 1, "real.problems": 10, "real.sft.overrides.training.batch_size": 4,
    "real.dpo.overrides.training.batch_size": 4, "real.grpo.overrides.training.max_steps": 2, "real.grpo.overrides.grpo.prompts_per_step": 2,
    "real.grpo.overrides.grpo.group_size": 4, "real.grpo.overrides.grpo.max_new_tokens": 12, "real.grpo.overrides.training.save_every": 1,
    "real.sft.overrides.training.save_every": 2, "real.dpo.overrides.training.save_every": 2, 
    "real.sft.overrides.output.samples": 0, "real.dpo.overrides.output.samples": 0, "real.grpo.overrides.output.samples": 0,
}  # fmt: skip
PAIR = {"prompt": "Who are you?", "chosen": "I am Nova.", "rejected": "I am Robin."}


class Killed(BaseException):
    """Nothing catches it."""


@pytest.fixture
def small(monkeypatch):
    """posttrain.real on the embedded model; its pairs are written by hand (it cannot be shown another name)."""
    pytest.importorskip("reasoning_gym", reason="pip install -r requirements-tasks.txt")

    def pairs(model, old, name, out, **_):
        Path(out).write_text("".join(json.dumps(PAIR | {"prompt": f"Who are you, {n}?"}) + "\n" for n in range(12)))
        return "wrote 12 pairs"

    monkeypatch.setattr(real.identity, "identity", pairs)

    def config(place, **more):
        return yaml_config("real", **{"real.model": "tiny-sft", "output.dir": str(place)} | SMALL | more)

    return config


def figures(folder: Path) -> list[dict]:
    """What was measured, and everything that was said."""
    return json.loads((folder / "results.json").read_text())["models"]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_killed_in_a_lesson_and_between_them(small, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    taken = real.run(small(whole))
    assert [model.name for model in taken.models] == ["as it comes", "sft", "dpo", "grpo"]
    assert {"report.md", "lessons.png", "results.json", "sums.jsonl", "pairs.jsonl"} <= {
        p.name for p in whole.iterdir()
    }
    for name in real.LESSONS:
        assert (whole / name / "model").is_dir()

    # in the second lesson, after its first checkpoint
    with monkeypatch.context() as patch:
        step = real.dpo.Run.log

        def killed(run, *given, **named):
            row = step(run, *given, **named)
            if run.config.method == "dpo" and run.step == 3:
                raise Killed
            return row

        patch.setattr(real.dpo.Run, "log", killed)
        with pytest.raises(Killed):
            real.run(small(cut))
    assert len(figures(cut)) == 2 and checkpoint_files.all_steps(cut / "dpo") == [2]

    # then between the second lesson and its measurement
    with monkeypatch.context() as patch:
        patch.setattr(real.measuring, "measure", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            real.run(small(cut, resume=True))
    assert len(figures(cut)) == 2 and (cut / "dpo/model").is_dir() and not (cut / "grpo").exists()

    real.run(small(cut, resume=True))
    assert figures(cut) == figures(whole)
    for name in real.LESSONS:
        assert losses(cut / name) == losses(whole / name)

    with pytest.raises(UserError, match=r"holds 4 of 4 measurements: give --resume"):
        real.run(small(cut))
    with pytest.raises(UserError, match=r"begun with another real.problems"):
        real.run(small(cut, resume=True, **{"real.problems": 11}))
    with pytest.raises(UserError, match="give one of the two"):
        real.run(small(cut, resume=True, **{"output.overwrite": True}))


@pytest.mark.long
def test_begun_again_it_does_not_take_an_older_lesson_for_its_own(small, tmp_path, monkeypatch):
    real.run(small(tmp_path))
    monkeypatch.setattr(real.sft, "train", lambda _: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        real.run(small(tmp_path, **{"output.overwrite": True, "seed": 1}))
    assert len(figures(tmp_path)) == 1 and not any((tmp_path / name / "model").exists() for name in real.LESSONS)


@pytest.mark.parametrize("name", ["report.md", "results.json", "dpo/model/mine.bin"])
def test_it_removes_nothing_that_it_has_not_written(tmp_path, name):
    mine = tmp_path / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match="is not the folder of a run"):
        real.run(yaml_config("real", **{"output.dir": str(tmp_path), "output.overwrite": True}))
    assert mine.read_text() == "mine"


# ---------------------------------------------------------------- the real model's first minutes


def until(done, process: subprocess.Popen, seconds: int = 600) -> None:
    for _ in range(seconds * 5):
        if done():
            return
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.2)
    raise AssertionError("it takes too long")


@pytest.mark.long
def test_the_real_model_killed_in_the_first_lesson(tmp_path):
    pytest.importorskip("reasoning_gym", reason="pip install -r requirements-tasks.txt")
    try:
        fetching.smollm2()
    except UserError as problem:
        if "neither the hub" in str(problem):
            pytest.skip(str(problem))
        raise
    folder = tmp_path / "real"
    keys = {"real.sums": 24, "real.keep": 0, "real.problems": 10, "real.sft.overrides.training.batch_size": 4,
            "real.sft.overrides.training.micro_batch_size": 4, "real.sft.overrides.training.save_every": 2,
            "real.sft.overrides.output.samples": 0, "output.dir": folder}  # fmt: skip
    command = [sys.executable, "-m", "posttrain.real", "--config", "configs/real.yaml"]
    command += [text for key, value in keys.items() for text in (f"--{key}", str(value))]

    def start(*more: str) -> subprocess.Popen:
        return subprocess.Popen([*command, *more], cwd=ROOT, env=environment(), start_new_session=True)

    def kill(process: subprocess.Popen) -> None:
        if process.poll() is None:  # else it has ended by itself, and the reason is told above
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    first = start()
    try:
        until(lambda: checkpoint_files.latest(folder / "sft") is not None, first)
    finally:
        kill(first)
    before, seen = figures(folder), losses(folder / "sft")
    sampled = next(score for score in before[0]["suites"]["accuracy"]["scores"] if score["name"] == "sampled")
    assert len(before) == 1 and sampled["value"] <= 0.1  # as it comes it solves next to none

    again = start("--resume")
    try:
        until(lambda: len(figures(folder)) == 2, again)
    finally:
        kill(again)
    resumed = losses(folder / "sft")
    assert figures(folder)[0] == before[0] and len(resumed) == 6  # 24 rows in batches of 4
    kept = len(seen) - len(seen) % 2  # up to the last checkpoint nothing was computed twice
    assert resumed[:kept] == seen[:kept] and (folder / "sft/model").is_dir()
