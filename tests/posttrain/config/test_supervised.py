"""The keys of the loops that learn from rows: what cannot be together, and what words mean."""

import pytest
from kit import yaml_config

from posttrain.errors import UserError


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("sft", {"training__packing": True, "sft__length_weighting": "sequence"}, "sft.length_weighting: sequence needs them apart"),
        ("sft", {"data__train_on": "first"}, "data.train_on: input should be 'all' or 'last', got 'first'"),
        ("dpo", {"dpo__precompute": True, "data__streaming": True, "training__max_steps": 3}, "dpo.precompute goes through all rows beforehand"),
        ("dpo", {"dpo__label_smoothing": 0.5}, "dpo.label_smoothing: input should be less than 0.5, got 0.5"),
        ("reward", {"reward__loss": "outcome", "reward__center_coef": 0.0, "reward__margin": 1.0}, "belong to loss: preference"),
        ("reward", {"reward__loss": "outcome"}, "belong to loss: preference"),  # center_coef of the tiny config
        ("reward", {"model__adapter": "lora", "model__adapter_path": "x"}, "a reward model takes a fresh adapter"),
        ("pretrain", {"training__eval_every": 2}, "loops.pretrain evaluates nothing"),
        ("pretrain", {"training__best_metric": "loss"}, "loops.pretrain evaluates nothing"),
        ("pretrain", {"training__betas": [0.9]}, "training.betas"),
        ("pretrain", {"training__decay": "norms"}, "'matrices' or 'all', got 'norms'"),
    ],
)  # fmt: skip
def test_keys_that_cannot_be(method, changes, message):
    yaml_config(f"{method}_tiny")
    with pytest.raises(UserError, match=message):
        yaml_config(f"{method}_tiny", **changes)


def test_what_fits():
    assert yaml_config("sft_tiny", training__packing=True).training.packing
    assert yaml_config("dpo_tiny", dpo__precompute=True).dpo.precompute
    assert yaml_config("dpo_tiny", data__streaming=True, training__max_steps=3).data.streaming
    outcome = {"reward__loss": "outcome", "reward__center_coef": 0.0}
    assert yaml_config("reward_tiny", **outcome).reward.loss == "outcome"


def test_a_shape_from_the_command_line_is_numbers():
    """Words on a command line are text: the keys of model.shape are transformers' own, and have no type here."""
    shape = yaml_config(
        "pretrain_tiny", **{"model.shape.hidden_size": "32", "model.shape.tie_word_embeddings": "false"}
    )
    assert shape.model.shape["hidden_size"] == 32 and shape.model.shape["tie_word_embeddings"] is False
    assert shape.model.shape["num_hidden_layers"] == 2  # of the file
