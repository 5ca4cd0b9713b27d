"""How large a model is, from its config: 1,000,000 rows of 64 are 64 million weights, 1,000 are 64 thousand."""

import pytest
from peft import LoraConfig
from transformers import LlamaConfig

from posttrain.config.keys import Model
from posttrain.models.size import config_of, is_large

SHAPE = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}


@pytest.mark.parametrize(("vocabulary", "expected"), [(1_000, False), (1_000_000, True)])
def test_a_folder_and_an_adapter_on_it(tmp_path, vocabulary, expected):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    LlamaConfig(**SHAPE, vocab_size=vocabulary, tie_word_embeddings=True).save_pretrained(base)
    LoraConfig(base_model_name_or_path=str(base)).save_pretrained(adapter)
    for folder in (base, adapter):
        assert is_large(Model(name=str(folder))) is expected and config_of(str(folder)).vocab_size == vocabulary


def test_what_cannot_be_read_is_not_large(tmp_path):
    assert not is_large(Model(name=str(tmp_path / "nowhere")))
    (tmp_path / "config.json").write_text("{")
    assert not is_large(Model(name=str(tmp_path)))
    assert not is_large(object())  # pretraining names no model
