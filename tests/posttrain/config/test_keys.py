"""The keys that all methods share: what cannot be, and what cannot be together."""

import pytest
from kit import yaml_config

from posttrain.config.supervised import SftData as Data
from posttrain.errors import UserError


def test_nan_is_not_a_number():
    with pytest.raises(UserError, match=r"dpo.beta: input should be a finite number, got nan"):
        yaml_config("dpo_tiny", dpo__beta=float("nan"))


def test_flash_attention_is_for_weights_that_are_not_trained():
    flash = {"model__attn_implementation": "flash_attention_2"}
    with pytest.raises(UserError, match="wants 16-bit weights, and weights that are trained stay float32"):
        yaml_config("sft_tiny", **flash)
    assert yaml_config("sft_tiny", model__adapter="lora", **flash).model.attn_implementation == "flash_attention_2"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": []}, "name is an empty list"),
        ({"name": ["a", "a"]}, "lists a source twice"),
        ({"name": ["a", "b"], "weights": [1]}, "weights has 1 entries for 2 names"),
        ({"name": ["a", "b"], "weights": [1, 0]}, "must be above 0"),
        ({"name": "a", "streaming": True, "validation_split": 0.1}, "validation_split needs all rows at once"),
    ],
)
def test_keys_that_cannot_be(data, message):
    with pytest.raises(ValueError, match=message):
        Data(**data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.best_metric": "validation_loss"}, "best_metric needs training.eval_every"),
        ({"training.best_metric": "accuracy", "data.validation_split": 0.2, "training.eval_every": 2}, "accuracy is not a validation metric of loops.sft: it has validation_loss"),
    ],
)  # fmt: skip
def test_a_best_metric_that_is_never_measured(changes, message):
    with pytest.raises(UserError, match=message):
        yaml_config("sft_tiny", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__adapter": "none", "model__quantization": "4bit", "model__adapter_path": None}, "quantization: 4bit needs adapter: lora"),
        ({"model__adapter": "none", "model__quantization": "none"}, "adapter_path needs adapter: lora"),
        ({"model__reference": "adapter_off"}, "without its adapter the policy is not what it was at step 0"),
    ],
)  # fmt: skip
def test_adapters_that_cannot_be(changes, message):
    """Going on with a saved adapter, but for these keys."""
    fixed = {"model__adapter": "lora", "model__adapter_path": "x"}
    assert yaml_config("dpo_tiny", **fixed).model.adapter_path == "x"
    with pytest.raises(UserError, match=message):
        yaml_config("dpo_tiny", **fixed | changes)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("grpo", {"model__reference": "adapter_off"}, "adapter_off needs adapter: lora"),
        ("grpo", {"training__eval_every": 5}, "belong together: set both or neither"),
        ("sft", {"data__validation_split": 0.1}, "belong together: set both or neither"),
        ("sft", {"data__streaming": True}, "data.streaming needs training.max_steps"),
        ("ppo", {"training__best_metric": "validation_loss"}, "no?t? a validation metric of loops.ppo: it has reward_held_out"),
    ],
)  # fmt: skip
def test_what_belongs_together(method, changes, message):
    with pytest.raises(UserError, match=message):
        yaml_config(f"{method}_tiny", **changes)


def test_shares_are_any_numbers_above_0():
    assert Data(name=["a", "b"], weights=[0.5, 3]).weights == [0.5, 3]


def test_a_watched_reward_may_be_the_best_metric():
    assert yaml_config("ppo_tiny", training__best_metric="watched/answer_held_out").training.best_metric


@pytest.mark.parametrize(
    ("given", "names"), [("wandb", ["wandb"]), (None, []), (["mlflow", "wandb", "mlflow"], ["mlflow", "wandb"])]
)
def test_trackers_are_a_list_however_they_are_given(given, names):
    assert yaml_config("sft_tiny", tracking__to=given).tracking.to == names


def test_empty_groups_and_the_runs_folder():
    config = yaml_config("sft_tiny", model__lora=None, training=None)  # as `training:` with nothing under it
    assert config.model.lora.rank == 16 and config.training.learning_rate == 2e-5
    assert config.method == "sft" and str(config.folder) == "outputs/sft_tiny"
    assert str(yaml_config("sft_tiny", output__dir="a/b").folder) == "a/b"
