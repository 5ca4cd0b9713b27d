"""A ladder's stages: each its own config, with its overrides, checked before anything runs."""

import pytest

from posttrain import ROOT
from posttrain.config.loading import load
from posttrain.errors import UserError


def test_ladder_overrides_are_checked_before_anything_runs(tmp_path):
    from posttrain.config.stages import stage_config

    config = load(ROOT / "configs/ladder_tiny.yaml", {"ladder.grpo.overrides.training.max_stepz": 5})
    with pytest.raises(
        UserError, match=r"ladder.grpo.overrides: unknown key 'max_stepz' in training, did you mean 'max_steps'"
    ):
        stage_config(config, "grpo", "tiny-base")


def test_ladder_stage_overrides():
    config = load(ROOT / "configs/ladder_tiny.yaml", {"ladder.grpo.overrides.training.max_steps": 20, "seed": 4})
    assert config.ladder.grpo.overrides == {"training.max_steps": 20} and config.ladder.seed == 4
