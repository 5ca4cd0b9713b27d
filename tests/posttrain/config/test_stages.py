"""A ladder's stages: each its own config, with its overrides, checked before anything runs."""

import pytest
from kit import yaml_config

from posttrain.config import command_line
from posttrain.config.stages import refuse_incomplete, stage_config
from posttrain.errors import UserError


def test_ladder_overrides_are_checked_before_anything_runs():
    config = yaml_config("ladder_tiny", **{"ladder.grpo.overrides.training.max_stepz": 5})
    wrong = r"ladder.grpo.overrides: unknown key 'max_stepz' in training, did you mean 'max_steps'"
    with pytest.raises(UserError, match=wrong):
        stage_config(config, "grpo", "tiny-base")
    with pytest.raises(UserError, match=wrong):
        refuse_incomplete(config)
    ppo = {"ladder.ppo": {"config": "ppo_tiny.yaml", "overrides": {"training.epoch": 2}}}
    refuse_incomplete(yaml_config("ladder_tiny", **ppo))  # PPO is not climbed
    with pytest.raises(UserError, match=r"ladder.ppo.overrides: unknown key 'epoch'"):
        refuse_incomplete(yaml_config("ladder_tiny", **ppo, **{"ladder.beside": ["ppo"]}))


def test_ladder_stage_overrides():
    config = yaml_config("ladder_tiny", **{"ladder.grpo.overrides.training.max_steps": 20, "seed": 4})
    assert config.ladder.grpo.overrides == {"training.max_steps": 20} and config.ladder.seed == 4


def test_a_stage_starts_where_it_is_told_in_a_folder_of_its_own(tmp_path):
    changes = {
        "ladder.seed": 4,
        "output.dir": str(tmp_path),
        "ladder.dpo.overrides": {"dpo.beta": 0.5, "training.seed": 9},
    }
    stage = stage_config(yaml_config("ladder_tiny", **changes), "dpo", "the/start")
    assert (stage.method, stage.model.name, stage.dpo.beta, stage.training.seed) == ("dpo", "the/start", 0.5, 4)
    assert stage.folder == tmp_path / "dpo" and stage.output.overwrite and stage.data.name == "tiny-identity"
    again = stage_config(yaml_config("ladder_tiny", **changes), "best_of_k", "x")  # SFT under another name
    assert again.method == "sft" and again.folder == tmp_path / "best_of_k" and again.training.learning_rate == 1e-3


def test_a_stages_config_may_be_ones_own_file(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("model: {name: x}\ndata: {name: y}\nsft: {}\ntraining: {epochs: 7}\n")
    monkeypatch.chdir(tmp_path)
    assert (
        stage_config(yaml_config("ladder_tiny", **{"ladder.sft.config": "mine.yaml"}), "sft", "x").training.epochs == 7
    )


def test_a_run_needs_rows():
    refuse_incomplete(yaml_config("sft_tiny"))
    with pytest.raises(UserError, match=r"'data.name' is missing: give it in the file or as --data.name VALUE"):
        refuse_incomplete(yaml_config("sft_tiny", data__name=None))


def test_a_command_asks_before_it_starts(monkeypatch):
    monkeypatch.setattr("sys.argv", ["sft", "--config", "configs/sft_tiny.yaml", "--data.name", "null"])
    with pytest.raises(SystemExit, match=r"error: 1 problem.*\n.*'data.name' is missing"):
        command_line.early_check("sft")
