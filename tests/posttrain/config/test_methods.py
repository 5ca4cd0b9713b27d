"""Every method and its config class; the ladder's own keys; and what is refused by name."""

from pathlib import Path

import pytest
from kit import tiny_config, yaml_config

from posttrain import ROOT
from posttrain.config.methods import METHODS, REFUSED, LadderConfig, module_of
from posttrain.errors import UserError


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_a_module_and_its_own_group(method):
    assert (ROOT / f"{module_of(method).replace('.', '/')}.py").is_file() and method in METHODS[method].model_fields
    config = yaml_config("real" if method == "real" else tiny_config(method))
    assert config.method == method and type(config) is METHODS[method]


def test_the_ladder_by_default():
    config = LadderConfig()
    assert config.folder == Path("outputs/ladder") and config.ladder.beside == [] and config.ladder.base == "tiny-base"
    stages = [getattr(config.ladder, name).config for name in ("sft", "dpo", "grpo", "ppo", "best_of_k")]
    assert stages == ["sft_tiny.yaml", "dpo_tiny.yaml", "grpo_tiny.yaml", "ppo_tiny.yaml", "sft_tiny.yaml"]
    assert config.ladder.best_of_k.overrides == {"training.learning_rate": 1e-3}


def test_the_task_of_the_lessons_from_the_command_line():
    """Text becomes numbers, as in YAML."""
    config = yaml_config("real", **{"real.task.max_terms": "3"})
    assert config.real.task == {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}
    assert config.folder == Path("outputs/real") and not config.resume


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ladder.beside": ["sft"]}, "'ppo' or 'best_of_k'"),
        ({"ladder.problems": 401}, "less than or equal to 400, got 401"),
        ({"ladder.sft": {"overides": {}}}, "unknown key 'overides' in ladder.sft, did you mean 'overrides'"),
    ],
)
def test_a_ladder_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        yaml_config("ladder_tiny", **changes)


@pytest.mark.parametrize("method", ["grpo", "ppo"])
@pytest.mark.parametrize("key", REFUSED)
def test_sampling_that_would_bias_the_ratio_is_refused_by_name(method, key):
    with pytest.raises(
        UserError, match=rf"'{key}' is refused in RL: a token sampled from a truncated distribution has"
    ):
        yaml_config(f"{method}_tiny", **{f"{method}.{key}": 1})
