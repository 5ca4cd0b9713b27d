"""The commands as a user types them: a run on real-looking rows, and bad input that gets one clear sentence."""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
from kit import tiny_family

from posttrain import ROOT
from posttrain.config import load
from posttrain.config.methods import module_of

WORDS = "tests/data/word_problems.jsonl"
PAIRS = "tests/data/pairs.jsonl"


def command(*arguments, cwd=ROOT, timeout=200):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"CI": "1"},
    )


def here(module, *arguments):
    """The same in this process, which has imported the libraries: (exit code, what it says)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(ROOT), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [module, *map(str, arguments)])
        patch.setenv("CI", "1")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
                code = 0
            except SystemExit as stopped:  # what the interpreter makes of it: words go to stderr, with exit code 1
                code = stopped.code if isinstance(stopped.code, int) else 1
                print(stopped.code, file=err)
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.mark.parametrize(
    ("loop", "data", "more"),
    [
        ("sft", WORDS, []),
        ("dpo", PAIRS, []),
        ("grpo", WORDS, ["--grpo.prompts_per_step", "2", "--grpo.max_new_tokens", "8"]),
    ],
)
def test_a_model_folder_and_a_data_file_of_ones_own(tmp_path, llama, loop, data, more):
    out = command(
        f"loops.{loop}", "--config", f"configs/{loop}_tiny.yaml", "--model.name", llama, "--data.name", data, "--training.max_steps", 2,
        "--output.dir", tmp_path / "run", "--data.max_length", 200, *more,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert "Warning" not in out.stderr and "warnings.warn" not in out.stderr
    assert f"from {data}" in out.stderr
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "curves.png",
        "samples.md",
        "model",
    }


@pytest.mark.long
@pytest.mark.parametrize("how", ["none", "lora", "4bit"])
@pytest.mark.parametrize(
    ("config", "data", "kind"),
    [("sft", WORDS, "llama"), ("sft", "tests/data/sharegpt.json", "llama"), ("sft_qlora", "tests/data/alpaca.jsonl", "qwen2"),
     ("dpo", "tests/data/hh.jsonl", "llama"), ("grpo", WORDS, "llama")],
)  # fmt: skip
def test_the_configs_of_hub_models_with_model_and_data_of_ones_own(tmp_path, config, data, kind, how):
    """As a user would point them elsewhere: a small instance of the same architecture, a file, two steps."""
    more = {
        "none": [],
        "lora": ["--model.adapter", "lora"],
        "4bit": ["--model.adapter", "lora", "--model.quantization", "4bit"],
    }[how]
    small = ["--grpo.max_new_tokens", "8", "--grpo.prompts_per_step", "2"] if config == "grpo" else []
    out = command(
        f"loops.{config.split('_')[0]}", "--config", f"configs/{config}.yaml", "--model.name", tiny_family(tmp_path / "m", kind), "--data.name", data,
        "--training.max_steps", 2, "--data.max_samples", 8, "--output.dir", tmp_path / "run", "--data.max_length", 250,
        "--data.overlong", "truncate_prompt", *small, *more,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert "Warning" not in out.stderr and "warnings.warn" not in out.stderr and "MatMul8bitLt" not in out.stderr
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.long
@pytest.mark.parametrize("method", ["sft", "dpo", "reward", "grpo", "ppo"])
def test_each_tiny_config_as_it_is_for_one_step(tmp_path, method):
    out = command(
        f"loops.{method}",
        "--config",
        f"configs/{method}_tiny.yaml",
        "--training.max_steps",
        1,
        "--output.dir",
        tmp_path / "run",
        timeout=400,
    )
    assert out.returncode == 0, out.stderr
    assert "preflight passed" in out.stderr and len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 1


def test_every_shipped_config_validates():
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        config = load(path)
        assert config.method == path.stem.split("_")[0] and str(config.folder).startswith("outputs/"), path
    for path in sorted((ROOT / "configs/variants").glob("*.yaml")):  # called by what people know them by
        assert str(load(path).folder) == f"outputs/{path.stem}"


def test_merge_and_curate_as_commands(tmp_path, llama):
    done = here(
        "loops.sft", "--config", "configs/sft.yaml", "--model.name", llama, "--model.adapter", "lora", "--data.name", "tests/data/chats.jsonl",
        "--training.max_steps", 1, "--output.dir", tmp_path / "run", "--data.overlong", "truncate_prompt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = command("posttrain.merge", "--adapter", tmp_path / "run" / "model", "--out", tmp_path / "merged")
    assert out.returncode == 0 and "argmax agreement 100.0%" in out.stdout, out.stderr
    again = here("posttrain.merge", "--adapter", tmp_path / "run" / "model", "--out", tmp_path / "merged")
    assert again.returncode == 1 and "already exists" in again.stderr and "Traceback" not in again.stderr
    out = command(
        "posttrain.curate", "clean", "tests/data/hh.jsonl", "--out", tmp_path / "o.jsonl", "--exact", "--for", "dpo"
    )
    assert out.returncode == 0 and "wrote 10 rows" in out.stdout
    out = here("posttrain.curate", "clean", tmp_path / "none.jsonl", "--out", tmp_path / "p.jsonl", "--exact")
    assert out.returncode == 1 and "no such data file" in out.stderr and "Traceback" not in out.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/nope.yaml"], "configs/nope.yaml: no such file"),
        (["--config", "configs/sft_tiny.yaml", "--training.learnig_rate", "1"], "did you mean 'learning_rate'?"),
        (["--config", "configs/sft_tiny.yaml", "--training.batch_size", "-1"], "greater than or equal to 1, got -1"),
        (["--config", "configs/dpo_tiny.yaml"], "this is a config for loops.dpo, not for loops.sft"),
        (["--model.name", "x"], "'data.name' is missing"),
        (["--data.name", "x"], "'model.name' is missing"),
        (["stray"], "expected --KEY VALUE, got 'stray'"),
    ],
)
def test_a_bad_command_line(arguments, message):
    out = command("loops.sft", *arguments)
    assert out.returncode == 1 and message in out.stderr and "Traceback" not in out.stderr


@pytest.mark.parametrize("problem", ["missing", "broken", "empty turn", "nothing to learn", "nan"])
def test_bad_data_leaves_nothing_that_looks_finished(tmp_path, llama, problem):
    data, more = tmp_path / "rows.jsonl", []
    good = json.dumps({"prompt": "a", "completion": "b"})
    if problem == "broken":
        data.write_text(good + "\n{not json\n")
    elif problem == "empty turn":
        data.write_text(good + "\n" + json.dumps({"prompt": "a", "completion": " "}))
    elif problem == "nothing to learn":
        data.write_text(good)
        more = ["--data.max_length", "3"]
    elif problem == "nan":
        data.write_text(good)
        more = ["--training.learning_rate", "1e30", "--training.epochs", "20"]
    expected = {
        "missing": "no such data file", "broken": "line 2: not valid JSON", "empty turn": "row 2: 'completion' is empty",
        "nothing to learn": "nothing is left to train on", "nan": "stopped before the update",
    }[problem]  # fmt: skip
    start = command if problem == "nan" else here  # the one that gets furthest, in a process of its own
    out = start(
        "loops.sft", "--config", "configs/sft_tiny.yaml", "--model.name", llama, "--data.name", data, "--output.dir", tmp_path / "run", *more,
    )  # fmt: skip
    assert out.returncode == 1 and expected in out.stderr and "Traceback" not in out.stderr, out.stderr
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    "name",
    [
        "logprobs",
        "weights",
        "sft",
        "dpo",
        "ipo",
        "robust_dpo",
        "dpop",
        "apo",
        "simpo",
        "orpo",
        "kto",
        "distill",
        "distill_chunked",
        "reward",
        "kl",
        "advantages",
        "grpo",
        "gspo",
        "cispo",
        "overlong",
        "mismatch",
        "ppo",
    ],
)
def test_walk_throughs(name):
    start = command if name == "dpo" else here
    out = start(f"losses.{name}")
    assert out.returncode == 0, out.stderr
    assert len(out.stdout.splitlines()) >= 6 and "=" in out.stdout


@pytest.mark.parametrize("method", ["sft", "distill", "dpo", "simpo", "kto", "reward", "grpo", "ppo", "ladder", "real"])
def test_help_teaches(method):
    out = command(module_of(method), "--help", timeout=20)
    assert out.returncode == 0 and "default:" in out.stdout


def test_losses_import_neither_transformers_nor_the_floors_above():
    code = (
        "import sys, losses.logprobs, losses.weights, losses.sft, losses.dpo, losses.kl, losses.advantages, losses.grpo, losses.gspo, losses.cispo, losses.mismatch, losses.overlong, losses.reward, losses.ppo\n"
        "bad = {'transformers', 'posttrain', 'loops', 'accelerate', 'peft', 'datasets'} & set(sys.modules)\nassert not bad, bad"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
