"""The keys that all methods share: what cannot be, and what cannot be together."""

import pytest

from posttrain import ROOT
from posttrain.config.loading import load
from posttrain.config.supervised import SftData as Data
from posttrain.errors import UserError


def write(tmp_path, text, name="run.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


GOOD = "model:\n  name: tiny-sft\ndata:\n  name: tiny-identity\ndpo:\n  beta: 0.2\n"


def problems(path, overrides=None, method=None):
    with pytest.raises(UserError) as error:
        load(path, overrides, method=method)
    return str(error.value)


def test_nan_is_not_a_number(tmp_path):
    assert "finite" in problems(write(tmp_path, GOOD.replace("0.2", ".nan")))


def test_flash_attention_is_for_weights_that_are_not_trained():
    with pytest.raises(UserError, match="wants 16-bit weights, and weights that are trained stay float32"):
        load(ROOT / "configs" / "sft_tiny.yaml", {"model.attn_implementation": "flash_attention_2"})
    load(
        ROOT / "configs" / "sft_tiny.yaml", {"model.attn_implementation": "flash_attention_2", "model.adapter": "lora"}
    )


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
