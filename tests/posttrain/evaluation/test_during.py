"""Suites during training: the figures of the command, which training does not notice, on any number of processes."""

import json
import random
import shutil
import subprocess
import sys

import pytest
import torch
from kit import environment, even_tokens, run_loop, small_config, tiny_family, tiny_folder, write_jsonl

from loops import dpo, grpo, ppo, pretrain, sft
from posttrain import ROOT, models
from posttrain.config.command_line import suite_options
from posttrain.errors import UserError
from posttrain.evaluation.during import Suites, as_row
from posttrain.evaluation.measuring import evaluate
from posttrain.evaluation.scores import Outcome, mean, proportion
from posttrain.run.training import Run

SFT = [{"prompt": f"Is {i} even?", "completion": "Yes." if i % 2 == 0 else "No."} for i in range(8)]
DPO = [{"prompt": f"Q {i}?", "chosen": f"Yes, {i}.", "rejected": "No."} for i in range(8)]
GRPO = [{"prompt": f"Question {i}?"} for i in range(8)]
LOOPS = {"sft": (sft, SFT), "dpo": (dpo, DPO), "grpo": (grpo, GRPO), "ppo": (ppo, GRPO)}
NOT_THE_SAME = {"seconds", "tokens_per_second", "memory_gib"}
PROBLEMS, CHATS = (str(ROOT / f"tests/data/{name}.jsonl") for name in ("word_problems", "chats"))


def keys(base, reward="kit:even_tokens"):
    """What a random model differs in, step by step: rewards of its samples, a text, its distance from where it began."""
    return {
        "accuracy.data": PROBLEMS, "accuracy.reward": reward, "accuracy.max_rows": 3, "accuracy.max_new_tokens": 6,
        "accuracy.samples": 2, "perplexity.data": CHATS, "perplexity.max_rows": 5,
        "drift.base": base, "drift.max_rows": 3, "drift.samples": 1, "drift.max_new_tokens": 6,
    }  # fmt: skip


def asked(base, every=2, **more):
    below = {f"evaluation.{key}": value for key, value in keys(base, **more).items()}
    return {"evaluation.suites": ["accuracy", "perplexity", "drift"], "evaluation.every": every, **below}


def run(method, model, place, **changes):
    loop, rows = LOOPS[method]
    place.mkdir()
    given = {"reward": even_tokens} if method in ("grpo", "ppo") else {}
    changes = {"training.max_steps": 3, "training.epochs": 2} | changes
    return run_loop(loop, model, place, rows=[dict(row) for row in rows], **given, **changes)


def scores(row):
    return {key: value for key, value in row.items() if key.startswith("eval/")}


def of_training(row):
    return {key: value for key, value in row.items() if key not in scores(row) and key not in NOT_THE_SAME}


def disturbing(completions):
    """A reward function that draws from every global generator."""
    random.random(), torch.rand(3)
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("method", LOOPS)
def test_training_does_not_notice(tmp_path, method):
    """gpt2 in SFT: dropout 0.1 everywhere, so a disturbed random state, or train flag, shows in the next loss."""
    model = tiny_family(tmp_path / "m", "gpt2") if method == "sft" else tiny_folder(tmp_path / "m")
    fresh = (
        {"model.adapter": "lora"} if method == "dpo" else {}
    )  # its start is drawn after the suites have read their data
    without = run(method, model, tmp_path / "without", **fresh)
    result = run(method, model, tmp_path / "with", **fresh, **asked(model, reward=f"{__name__}:disturbing"))
    before, *steps = result.metrics
    assert before["step"] == 0 and set(before) == {"step", *scores(before)} and len(steps) == len(without.metrics) == 3
    assert [of_training(row) for row in steps] == [of_training(row) for row in without.metrics]
    assert [bool(scores(row)) for row in steps] == [False, True, True]  # every 2 steps, and at the end
    for file in (tmp_path / "without/run/model").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "with/run/model" / file.name).read_bytes()
    assert result.model.training == without.model.training


def test_the_figures_are_those_of_the_command(tmp_path, llama):
    """The last row against python -m posttrain.evaluate on the model that was saved, the first on the one it began with."""
    result = run("sft", llama, tmp_path / "a", **asked(llama))
    saved = str(result.folder / "model")
    found = list(
        evaluate([llama, saved], suite_options(["accuracy", "perplexity", "drift"], keys(llama)), device="cpu")
    )
    for row, measured in zip((result.metrics[0], result.metrics[-1]), found[-1].models, strict=True):
        expected = {k: v for name, outcome in measured.outcomes.items() for k, v in as_row(name, outcome).items()}
        assert scores(row) == pytest.approx(expected, abs=1e-6) and len(expected) > 20
    assert result.metrics[0]["eval/drift.kl"] == 0 < result.metrics[-1]["eval/drift.kl"]


def test_judge_and_quality_are_those_of_the_command(tmp_path, llama, capsys):
    """DPO with an adapter: who wins against the model it began with, and how near the references are."""
    pytest.importorskip("sacrebleu", reason="pip install -r requirements-eval.txt")
    told = {
        "judge.data": write_jsonl(tmp_path / "asked.jsonl", GRPO), "judge.max_new_tokens": 6, "judge.against": llama, "judge.model": llama,
        "quality.data": CHATS, "quality.max_rows": 5, "quality.max_new_tokens": 6,
    }  # fmt: skip
    below = {f"evaluation.{key}": value for key, value in told.items()}
    result = run("dpo", llama, tmp_path / "a", **{"model.adapter": "lora", "training.learning_rate": 1e-2,
                 "evaluation.suites": ["judge", "quality"], "evaluation.every": 2, **below})  # fmt: skip
    said = capsys.readouterr().err
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], len(scores(row)) > 30) for row in rows] == [(0, True), (1, False), (2, True), (3, True)]
    (found,) = evaluate([str(result.folder / "model")], suite_options(["judge", "quality"], told), device="cpu")
    expected = {k: v for name, of in found.models[0].outcomes.items() for k, v in as_row(name, of).items()}
    assert scores(rows[-1]) == pytest.approx(expected, abs=1e-5)
    at_first, at_last = (row["eval/judge.preferred"] for row in (rows[0], rows[-1]))
    assert at_first == pytest.approx(0.5, abs=1e-6) and abs(at_last - 0.5) > 1e-4  # against itself, at first
    # what was left to say of the first measurement and of the last, not of the one between
    assert said.count("evaluation.judge: the policy: its answers are") == 2 == said.count("distinct-1 and -2 of all")


def test_a_row_has_the_interval_and_its_n():
    shares = proportion("right", "", [1, 0, 0, 1], "problems")
    row = as_row("accuracy", Outcome([shares, mean("reward", "", [0.25], "problems")], []))
    # Wilson's interval of 2 of 4: (0.5 + z²/8 ∓ z √(0.25/4 + z²/64)) / (1 + z²/4), z = 1.96: 0.150, 0.850
    assert row["eval/accuracy.right"] == 0.5 and row["eval/accuracy.right/n"] == 4
    assert row["eval/accuracy.right/low"] == pytest.approx(0.150, abs=5e-4)
    assert row["eval/accuracy.right/high"] == pytest.approx(0.850, abs=5e-4)
    assert {k for k in row if "reward" in k} == {
        "eval/accuracy.reward",
        "eval/accuracy.reward/n",
    }  # of one: no interval


def test_a_run_that_was_stopped_and_resumed_has_the_same_rows(tmp_path, llama):
    told = asked(llama) | {"training.save_every": 1, "training.max_steps": 4, "training.keep_checkpoints": 9}
    straight = run("sft", llama, tmp_path / "a", **told).metrics
    folder = tmp_path / "a/run"
    for gone in ("model", "checkpoints/step_2", "checkpoints/step_3", "checkpoints/step_4"):
        shutil.rmtree(folder / gone)
    config = small_config("sft", llama, tmp_path / "a", **told, **{"training.epochs": 2, "output.overwrite": False, "resume": True})  # fmt: skip
    again = sft.train(config, rows=[dict(row) for row in SFT]).metrics
    assert [row["step"] for row in again] == [0, 1, 2, 3, 4]
    for one, two in zip(straight, again, strict=True):
        assert of_training(one) == of_training(two) and scores(one) == scores(two)
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == again


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"evaluation.accuracy.data": "nowhere.jsonl"}, r"^evaluation.accuracy: .*nowhere.jsonl"),
        ({"evaluation.accuracy.reward": "kit:nothing"}, r"^evaluation.accuracy.reward"),
        ({"evaluation.accuracy.reward": "answer", "evaluation.accuracy.data": CHATS}, r"^evaluation.accuracy: "),
    ],
)
def test_bad_data_is_refused_before_a_model_is_loaded(tmp_path, llama, monkeypatch, changes, problem):
    monkeypatch.setattr(models, "load_policy", lambda *told: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=problem):
        run("sft", llama, tmp_path / "a", **asked(llama) | changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"evaluation.accuracy.max_new_tokens": 250}, r"^evaluation.accuracy: the policy: prompt 1 has \d+ tokens, .* above the 256"),
        ({"evaluation.drift.base": "./nowhere"}, r"^evaluation.drift.base './nowhere': cannot be loaded"),
        ({"evaluation.perplexity.max_length": 300}, r"^evaluation.perplexity.max_length 300: the policy reads at most 256"),
    ],
)  # fmt: skip
def test_what_only_the_model_shows_is_refused_before_the_first_step(tmp_path, llama, changes, problem):
    with pytest.raises(UserError, match=problem):
        run("sft", llama, tmp_path / "a", **asked(llama) | changes)
    assert not (tmp_path / "a/run/metrics.jsonl").exists()


def test_a_step_is_timed_without_it_and_remarks_are_told_once(tmp_path, llama, monkeypatch, capsys):
    told = {"evaluation.suites": ["safety"], "evaluation.every": 1, "evaluation.safety.max_rows": 2, "evaluation.safety.max_new_tokens": 2}  # fmt: skip
    lasts = []
    measured = Suites.scores
    monkeypatch.setattr(Suites, "scores", lambda self: (lasts.append(self.run.last), measured(self), lasts.append(self.run.last))[1])  # fmt: skip
    result = run("sft", llama, tmp_path / "a", **told)
    assert len(result.metrics) == 4 and len(lasts) == 8
    assert all(later > sooner for sooner, later in zip(lasts[::2], lasts[1::2], strict=True))
    assert capsys.readouterr().err.count("evaluation.safety: the rule (refused_…)") == 1


def test_without_suites_nothing_is_done(tmp_path, llama):
    config = small_config("sft", llama, tmp_path)
    suites = Suites(Run(config))
    suites.before()
    assert suites.due() == {} and suites.run.metrics == []


def test_pretraining_measures_a_text(tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"The sum of {i} and {i} is {2 * i}."}) + "\n" for i in range(4)))
    told = {"evaluation.suites": "perplexity", "evaluation.perplexity.data": str(text), "evaluation.perplexity.max_rows": 3}  # fmt: skip
    result = run_loop(pretrain, None, tmp_path, **told)
    before, *_, last = result.metrics
    assert before["step"] == 0 and before["eval/perplexity.perplexity"] != last["eval/perplexity.perplexity"]
    assert before["eval/perplexity.perplexity/n"] == 3


# ---------------------------------------------------------------- several processes


def start(processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    script = ROOT / "tests/loops/sharded.py"
    done = subprocess.run(
        [*command, script, *map(str, arguments)], env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.long
@pytest.mark.parametrize("method", ["sft", "sft-lora", "dpo", "grpo", "ppo", "ppo-shared"])
@pytest.mark.parametrize("how", ["plain", "sharded"])
def test_two_processes_measure_what_one_does(tmp_path, method, how):
    """3 problems, 5 texts: an odd share. Whole on each (DDP) or spread over both (FSDP2); the weights stay theirs, too."""
    model = tiny_folder(tmp_path / "m")
    told = [f"{key}={value}" for key, value in asked(model).items() if key != "evaluation.suites"]
    told += ["evaluation.suites=[accuracy, perplexity, drift]", "training.save_every=100", "training.max_steps=3"]
    for name, processes, spread in (("one", 1, "plain"), ("two", 2, how)):
        start(processes, method, model, tmp_path / name, spread, *told)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("one", "two")
    )  # fmt: skip
    assert [row["step"] for row in two] == [0, 1, 2, 3] and len(scores(two[0])) == len(scores(two[2])) > 20
    for a, b in zip(one, two, strict=True):
        for name in set(a) - NOT_THE_SAME:
            assert b[name] == pytest.approx(a[name], abs=1e-5, rel=2e-5), (a["step"], name)
