"""Reward functions within a run: what they are told of it, what they log, on several processes, killed and resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kit import tiny_folder

sys.path.insert(0, str(Path(__file__).parent))
import logging_reward
from logging_reward import ROWS, SEEN, even_tokens, train

from loops import grpo, ppo
from posttrain import ROOT, inspect_batch
from posttrain.config import load
from posttrain.errors import UserError

NOT_THE_SAME = {"seconds", "tokens_per_second", "memory_gib"}  # of a metrics row


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("llama"))


def lines(out, name="rollouts.jsonl"):
    return [json.loads(line) for line in (Path(out) / name).read_text(encoding="utf-8").splitlines()]


def rows_of(metrics):
    return [{name: value for name, value in row.items() if name not in NOT_THE_SAME} for row in metrics]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, llama):
    """(its folder, what the functions were told of it) of a run of six steps: three rollouts of two minibatches."""
    SEEN.clear()
    out = tmp_path_factory.mktemp("whole") / "run"
    train(llama, str(out))
    return out, list(SEEN)


def test_what_is_logged_stands_in_metrics_jsonl(whole):
    """Seven rows, one held out: six prompts, so a rollout has three of them, and two rollouts are an epoch."""
    metrics, answers = lines(whole[0], "metrics.jsonl"), lines(whole[0])
    for step in (1, 3, 5):  # a rollout's first update; its second has the same rollout
        own = [a["logged/number"] for a in answers if a["step"] == step and not a["held_out"]]
        assert len(own) == 12 and metrics[step - 1]["logged/number"] == pytest.approx(sum(own) / 12, rel=1e-6)
        assert metrics[step]["logged/number"] == metrics[step - 1]["logged/number"]
        assert ("logged/threes" in metrics[step - 1]) == (3 in own)
    assert any("logged/threes" in row for row in metrics) and all(row["logged/patience"] == 1 for row in metrics)
    (held_out,) = {a["logged/number"] for a in answers if a["held_out"]}
    assert [row.get("logged/number_held_out") for row in metrics] == [None, None, held_out, None, None, held_out]


def test_what_is_logged_of_each_answer_stands_in_rollouts_jsonl(whole):
    answers = lines(whole[0])
    assert [(a["step"], a["held_out"]) for a in answers] == (
        [(1, False)] * 12 + [(3, False)] * 12 + [(3, True)] + [(5, False)] * 12 + [(6, True)]
    )
    asked = {row["prompt"]: row["number"] for row in ROWS}
    for a in answers:
        assert asked[a["prompt"]] == a["logged/number"] and isinstance(a["completion"], str) and 0 <= a["reward"] <= 1
        rollout = [b["logged/number"] for b in answers if (b["step"], b["held_out"]) == (a["step"], a["held_out"])]
        assert ("logged/first" in a) == (3 in rollout)
    means = {
        step: sum(a["reward"] for a in answers if a["step"] == step and not a["held_out"]) / 12 for step in (1, 3, 5)
    }
    assert [row["reward"] for row in lines(whole[0], "metrics.jsonl")[::2]] == pytest.approx(
        list(means.values()), rel=1e-5
    )


def test_how_far_the_run_is(whole):
    # two rollouts of two steps are an epoch; held-out prompts are asked when the third and the sixth step are done
    told = [(0, 0.0), (2, 0.5), (3, 0.75), (4, 1.0), (6, 1.5)]
    assert whole[1] == [(step, 6, epoch, 2) for step, epoch in told]


def test_of_a_stream_the_epoch_is_unknown(tmp_path, llama):
    seen = []

    def reward(completions, trainer_state):
        seen.append((trainer_state.global_step, trainer_state.epoch, trainer_state.num_train_epochs))
        return [0.0] * len(completions)

    config = load(
        ROOT / "configs/grpo_tiny.yaml",
        {
            "model.name": llama, "output.dir": str(tmp_path / "run"), "output.samples": 0, "training.max_steps": 2,
            "data.name": str(ROOT / "tests/data/word_problems.jsonl"), "data.streaming": True, "grpo.prompts_per_step": 2,
            "grpo.group_size": 2, "grpo.max_new_tokens": 4,
        },
    )  # fmt: skip
    grpo.train(config, reward=reward)
    assert seen == [(0, None, None), (1, None, None)]


def test_resumed_in_the_middle_of_a_rollout_it_is_the_same(tmp_path, llama, whole, monkeypatch):
    """Stopped at step 5, in the third rollout, resumed from step 3, in the second: all of it as if it had never stopped."""
    out, log = str(tmp_path / "run"), grpo.Run.log

    def stopped(self, *told):
        row = log(self, *told)
        if self.step == 5:
            raise RuntimeError("stopped")
        return row

    SEEN.clear()
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="stopped"):
        patched.setattr(grpo.Run, "log", stopped)
        train(llama, out, training__save_every=3)
    assert len(lines(out)) == 37 and whole[1][:4] == SEEN  # 12 + 12 + 1 + 12
    with open(Path(out) / "rollouts.jsonl", "a") as file:
        file.write('{"step": 5, "held_')
    SEEN.clear()
    train(llama, out, training__save_every=3, resume=True)
    assert whole[1][3:] == SEEN  # the second rollout is not scored again
    assert lines(out) == lines(whole[0])
    assert rows_of(lines(out, "metrics.jsonl")) == rows_of(lines(whole[0], "metrics.jsonl"))


@pytest.mark.long
def test_two_processes_log_what_one_does(tmp_path, llama, whole):
    """Three prompts and two processes: one has two groups, the other one. A name that only one of them knows is logged by
    both, or they would wait for each other for ever; with one held-out prompt the second process has nothing to ask."""
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", logging_reward.__file__, llama, str(out)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for one, two in zip(lines(whole[0], "metrics.jsonl"), lines(out, "metrics.jsonl"), strict=True):
        assert list(one) == list(two)
        for name in set(one) - NOT_THE_SAME:
            assert two[name] == pytest.approx(one[name], abs=1e-5, rel=2e-5), (one["step"], name)
    alone, together = lines(whole[0]), lines(out)
    first = [line.get("logged/first") for line in together]  # of one process alone: the other has nothing to put there
    assert together == [
        line | {"logged/first": x} if "logged/first" in line else line for line, x in zip(alone, first, strict=True)
    ]
    assert all(x in (None, line.get("logged/first")) for line, x in zip(alone, first, strict=True))
    with_threes = [x for line, x in zip(alone, first, strict=True) if "logged/first" in line]
    assert None in with_threes and with_threes != [None] * len(with_threes)


def test_ppo_too_and_the_functions_that_are_only_watched(tmp_path, llama, monkeypatch):
    (tmp_path / "watching.py").write_text(
        "def length(completions, log_metric, log_extra, **columns):\n"
        "    log_metric('longest', max(map(len, completions)))\n"
        "    log_extra('length', [len(c) for c in completions])\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = load(
        ROOT / "configs/ppo_tiny.yaml",
        {
            "model.name": llama, "output.dir": str(tmp_path / "run"), "output.samples": 0, "training.max_steps": 1, "training.eval_every": None,
            "data.validation_split": 0.0, "ppo.prompts_per_step": 4, "ppo.minibatches": 1, "ppo.inner_epochs": 1, "ppo.max_new_tokens": 6,
            "ppo.watch": "watching:length",
        },
    )  # fmt: skip
    (row,) = ppo.train(config, rows=ROWS, reward=lambda completions: [1.0] * len(completions)).metrics
    answers = lines(tmp_path / "run")
    assert [a["logged/length"] for a in answers] == [len(a["completion"]) for a in answers] and len(answers) == 4
    assert row["logged/longest"] == max(a["logged/length"] for a in answers)
    assert {a["reward"] for a in answers} == {1.0}  # what pays, not what is watched


def test_a_function_that_logs_nothing_writes_no_file(tmp_path, llama):
    train(llama, str(tmp_path / "run"), training__max_steps=1)
    assert (tmp_path / "run/rollouts.jsonl").exists()
    config = load(
        ROOT / "configs/grpo_tiny.yaml",
        {
            "model.name": llama, "output.dir": str(tmp_path / "run"), "output.overwrite": True, "output.samples": 0, "training.max_steps": 1,
            "grpo.prompts_per_step": 2, "grpo.group_size": 2, "grpo.max_new_tokens": 4,
        },
    )  # fmt: skip
    (row,) = grpo.train(config, rows=ROWS, reward=lambda completions, **columns: [0.0] * len(completions)).metrics
    assert not (tmp_path / "run/rollouts.jsonl").exists() and not [name for name in row if name.startswith("logged/")]


def test_a_column_of_two_functions_is_refused(tmp_path, llama, monkeypatch):
    monkeypatch.setattr(logging_reward, "patient", even_tokens)
    with pytest.raises(UserError, match=r"log_extra: the column '[a-z]+' got 24 values for 12 completions"):
        train(llama, str(tmp_path / "run"))


def test_what_a_function_changes_in_place_does_not_touch_the_training(tmp_path, llama):
    def clean(completions, completion_ids):
        return [sum(t % 2 == 0 for t in ids) / len(ids) for ids in completion_ids]

    def vandal(prompts, completions, completion_ids, **columns):
        values = clean(completions, completion_ids)
        for ids in completion_ids:
            ids[:] = [0]
        for column in (prompts, completions, completion_ids, *columns.values()):
            if isinstance(column, list):
                column.clear()
        return values

    def trained(reward):
        overrides = {
            "model.name": llama, "output.dir": str(tmp_path / reward.__name__), "output.samples": 0, "training.max_steps": 3,
            "grpo.prompts_per_step": 2, "grpo.group_size": 4, "grpo.max_new_tokens": 6,
        }  # fmt: skip
        return grpo.train(load(ROOT / "configs/grpo_tiny.yaml", overrides), rows=ROWS, reward=reward)

    assert rows_of(trained(vandal).metrics) == rows_of(trained(clean).metrics)


def test_the_inspector_says_how_long_the_run_is(tmp_path, llama, monkeypatch):
    (tmp_path / "curriculum.py").write_text(
        "def reward(completions, trainer_state, log_extra):\n"
        "    log_extra('x', completions)\n"
        "    return [float(trainer_state.max_steps)] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = load(
        ROOT / "configs/grpo_tiny.yaml",
        {
            "model.name": llama, "output.dir": str(tmp_path / "run"), "training.max_steps": 17, "grpo.reward": "curriculum:reward",
            "grpo.prompts_per_step": 2, "grpo.group_size": 2, "grpo.max_new_tokens": 4,
        },
    )  # fmt: skip
    assert inspect_batch.inspect(config, rows=ROWS).names[0].startswith("reward 17")
    assert not (tmp_path / "run").exists()
