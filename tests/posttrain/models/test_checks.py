"""Checkpoints that would train to the end and teach nothing, or something else: refused, with their names."""

import json

import pytest
import torch
from kit import bytelevel_tokenizer, tiny_folder
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from loops import sft
from posttrain import ROOT, models
from posttrain.config import load
from posttrain.errors import UserError
from posttrain.models.logps import CompletionLogps
from posttrain.rollouts.asking import ask

SHAPE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=400,
             max_position_embeddings=256, pad_token_id=None, bos_token_id=None, eos_token_id=None)  # fmt: skip
GROUPED = SHAPE | dict(num_key_value_heads=2)
MAMBA = dict(hidden_size=32, num_hidden_layers=2, vocab_size=400, state_size=4, pad_token_id=None, bos_token_id=None,
             eos_token_id=None)  # fmt: skip
HYBRID = GROUPED | dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, head_dim=8)
EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)
ROWS = [{"prompt": f"{i}?", "completion": "Yes."} for i in range(8)]


def made(path, kind, shape):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**shape)).save_pretrained(path)
    bytelevel_tokenizer().save_pretrained(path)
    return str(path)


def without(path, *names):
    weights = load_file(path / "model.safetensors")
    for name in names:
        del weights[name]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_weight_is_refused_with_its_name(tmp_path):
    path = tiny_folder(tmp_path / "llama")
    without(tmp_path / "llama", "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(
        UserError, match=r"lacks model.layers.1.mlp.up_proj.weight, which would be random numbers: is it whole"
    ):
        models.load(path)


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = tiny_folder(tmp_path / "llama")
    config = json.loads((tmp_path / "llama/config.json").read_text())
    config |= {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}
    (tmp_path / "llama/config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"the checkpoint lacks .* and \d+ more, which would be random.*GPTNeoXForCausalLM"
    ):
        models.load(path)


def test_a_reward_model_is_no_language_model(tmp_path):
    path = tiny_folder(tmp_path / "llama", tie_word_embeddings=False)
    without(tmp_path / "llama", "lm_head.weight")
    with pytest.raises(UserError, match=r"the checkpoint lacks lm_head.weight, which would be random numbers"):
        models.load(path)
    tied = tiny_folder(tmp_path / "tied", tie_word_embeddings=True)  # where none is missing: the head is the embeddings
    assert "lm_head.weight" not in load_file(tmp_path / "tied/model.safetensors")
    models.load(tied)


def test_what_is_left_over_is_said(tmp_path):
    path = tiny_folder(tmp_path / "llama")
    weights = load_file(tmp_path / "llama/model.safetensors")
    save_file(
        weights | {"score.weight": torch.ones(1, 32)}, tmp_path / "llama/model.safetensors", metadata={"format": "pt"}
    )
    assert "in the checkpoint, but not in the model: score.weight" in models.load(path)[2]


def test_a_model_that_sees_the_future_is_refused(tmp_path):
    torch.manual_seed(0)
    shape = {name: value for name, value in SHAPE.items() if not name.endswith("token_id")}
    BertLMHeadModel(BertConfig(**shape, is_decoder=False)).save_pretrained(tmp_path / "bert")
    bytelevel_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="BertLMHeadModel sees the tokens after the one it predicts"):
        models.load(str(tmp_path / "bert"))
    BertLMHeadModel(BertConfig(**shape, is_decoder=True)).save_pretrained(tmp_path / "decoder")
    bytelevel_tokenizer().save_pretrained(tmp_path / "decoder")
    models.load(str(tmp_path / "decoder"))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("mixtral", GROUPED | EXPERTS), ("qwen3_moe", GROUPED | dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=8))],
)  # fmt: skip
def test_experts_that_nothing_would_balance(tmp_path, kind, shape):
    model = made(tmp_path / kind, kind, shape)

    def train(**more):
        overrides = {
            "model.name": model,
            "output.dir": str(tmp_path / "run"),
            "output.samples": 0,
            "training.max_steps": 1,
        }
        return sft.train(load(ROOT / "configs/sft_tiny.yaml", overrides | more), rows=ROWS)

    with pytest.raises(
        UserError,
        match=r"balances its experts with a loss \(router_aux_loss_coef 0.0\d+\) that is not trained here, while",
    ):
        train()
    assert not (tmp_path / "run").exists()
    assert len(train(**{"model.unbalanced_experts": True}).metrics) == 1


def test_a_router_s_jitter_is_off_where_dropout_is():
    """Two passes in train mode must be one and the same in RL and DPO; PhiMoE multiplies its inputs by 1 ± 0.01."""
    torch.manual_seed(0)
    jitter = dict(input_jitter_noise=0.1, router_jitter_noise=0.1)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["phimoe"](**GROUPED, **EXPERTS, **jitter)).train()
    ids = torch.arange(5, 20)[None]
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    models.no_dropout(model)
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits) and model.training


@pytest.mark.parametrize(("kind", "shape"), [("mamba", MAMBA), ("falcon_h1", HYBRID)])
def test_a_model_that_keeps_a_state_is_not_sampled_from(tmp_path, kind, shape):
    path = made(tmp_path / kind, kind, shape)
    model, tokenizer, _ = models.load(path)
    with pytest.raises(
        UserError, match="keeps a state, not only keys and values of its tokens: it cannot be sampled from here"
    ):
        ask(model, tokenizer, [[5, 6], [7]], max_new_tokens=4)


def test_a_model_with_a_state_is_trained_where_nothing_is_sampled(tmp_path):
    path = made(tmp_path / "mamba", "mamba", MAMBA)
    overrides = {
        "model.name": path,
        "output.dir": str(tmp_path / "run"),
        "training.max_steps": 2,
        "data.max_length": 100,
    }
    with pytest.raises(UserError, match=r"can be trained, with output.samples: 0"):
        sft.train(load(ROOT / "configs/sft_tiny.yaml", overrides), rows=ROWS)
    assert (
        len(sft.train(load(ROOT / "configs/sft_tiny.yaml", overrides | {"output.samples": 0}), rows=ROWS).metrics) == 2
    )


def test_a_window_is_not_lost_to_packing():
    """gpt-oss needs a mask to keep packed rows apart, and that mask would reach its layers with a window as well."""
    torch.manual_seed(0)
    shape = GROUPED | EXPERTS | dict(head_dim=8)
    for window in (8, 128):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["gpt_oss"](**shape, sliding_window=window))
        with pytest.raises(UserError, match=r"packed rows see each other, or lose their window; set"):
            CompletionLogps(model).find_a_way_to_pack()
    CompletionLogps(
        AutoModelForCausalLM.from_config(CONFIG_MAPPING["mistral"](**GROUPED, sliding_window=8))
    ).find_a_way_to_pack()
