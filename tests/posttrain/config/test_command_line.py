"""--config FILE --KEY VALUE …: how words become keys and values, and that a wrong line fails at once."""

import subprocess
import sys
import time

import pytest
from kit import yaml_config

from posttrain import ROOT
from posttrain.config import trackers
from posttrain.config.command_line import early_check, help_text, parse
from posttrain.config.loading import describe
from posttrain.config.methods import METHODS
from posttrain.errors import UserError


def test_the_command_line():
    path, overrides = parse(
        ["--config", "a.yaml", "--dpo.beta=0.5", "--learning-rate", "1e-4", "--output.overwrite", "--model.lora.targets", "q_proj", "v_proj",
         "--training.seed", "3", "--data.max_length", "null", "--model.adapter", "none", "--grpo.reward", "[a:b, c:d]"]
    )  # fmt: skip
    assert path == "a.yaml"
    assert overrides == {
        "dpo.beta": "0.5", "learning-rate": "1e-4", "output.overwrite": True, "model.lora.targets": ["q_proj", "v_proj"],
        "training.seed": "3", "data.max_length": None, "model.adapter": "none", "grpo.reward": ["a:b", "c:d"],
    }  # fmt: skip
    for wrong in (["beta", "1"], ["--config"], ["--beta", "1", "--beta", "2"]):
        with pytest.raises(UserError, match="command line"):
            parse(wrong)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data.system_prompt", "You are #1: be kind", "You are #1: be kind"),
        ("model.name", "010", "010"),
        ("output.dir", "2026-11-20", "2026-11-20"),
        ("training.max_steps", "7", 7),
        ("training.learning_rate", "1e-4", 1e-4),
        ("output.overwrite", "false", False),
    ],
)
def test_the_keys_type_decides_what_a_word_on_the_command_line_means(key, value, expected):
    _, overrides = parse([f"--{key}", value])
    config = yaml_config("dpo_tiny", **overrides)
    group, leaf = key.split(".")
    assert getattr(getattr(config, group), leaf) == expected


def test_a_key_without_a_value_is_true_and_true_is_no_number():
    _, overrides = parse(["--output.overwrite", "--training.learning_rate"])
    with pytest.raises(UserError, match=r"^1 problem.*\n.*training.learning_rate: expected a value, got true$"):
        yaml_config("dpo_tiny", **overrides)
    with pytest.raises(UserError, match=r"training.max_steps: expected a value, got true"):
        yaml_config("dpo_tiny", training__max_steps=True)
    assert yaml_config("dpo_tiny", output__overwrite=True).output.overwrite is True


@pytest.mark.parametrize("method", METHODS)
def test_help_names_every_key_with_its_meaning(method):
    text = " ".join(help_text(method).split())  # as one line: meanings are wrapped
    for key, kind, default, meaning in describe(METHODS[method]):
        assert meaning and " ".join(f"--{key} [{kind}] default: {default} {meaning}".split()) in text, key


def test_help_ends_there(monkeypatch, capsys):
    for word in ("-h", "--help"):
        monkeypatch.setattr("sys.argv", ["dpo", "--dpo.beta", "wrong", word])
        with pytest.raises(SystemExit) as stopped:
            early_check("dpo")
        assert stopped.value.code == 0 and "--dpo.beta [float] default: 0.1" in " ".join(
            capsys.readouterr().out.split()
        )


def test_what_is_asked_for_is_there_before_torch_is_imported(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["dpo", "--config", "configs/dpo_tiny.yaml", "--tracking.to", "wandb"])
    with pytest.raises(
        SystemExit, match=r"^error: tracking.to: wandb missing here: pip install wandb\n\(python -m loops.dpo"
    ):
        early_check("dpo")
    monkeypatch.setattr("sys.argv", ["ladder", "--config", "configs/ladder_tiny.yaml", "--seed", "4"])
    assert early_check("ladder").ladder.seed == 4


def test_a_wrong_command_line_fails_before_torch_is_imported():
    started = time.perf_counter()
    code = "import sys; sys.argv[1:] = ['--config', 'configs/sft_tiny.yaml', '--training.epoch', '3']\nimport runpy\ntry:\n    runpy.run_module('loops.sft', run_name='__main__')\nfinally:\n    assert 'torch' not in sys.modules"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 1 and "did you mean 'epochs'?" in out.stderr and "Traceback" not in out.stderr
    assert time.perf_counter() - started < 10


def test_none_is_no_value_where_a_number_may_be_left_out_and_a_word_where_it_is_a_choice():
    assert parse(["--ppo.value_clip_eps", "none"])[1] == {"ppo.value_clip_eps": None}
    assert parse(["--model.adapter", "none"])[1] == {"model.adapter": "none"}
    assert parse(["--data.max_samples", "null"])[1] == {"data.max_samples": None}
