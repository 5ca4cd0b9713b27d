"""What is saved loads with the plain libraries, and stops where the loops' own sampler does."""

import json

import torch
from kit import CHATML, LLAMA3, bytelevel_tokenizer, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from posttrain import models
from posttrain.config.keys import Lora
from posttrain.models import lora

IDS = torch.arange(20, 40)[None]


def made(template=CHATML, **tokens):
    tokenizer = bytelevel_tokenizer(template, **tokens)
    return tiny_model(vocab_size=len(tokenizer)).eval(), tokenizer


def test_it_loads_with_the_plain_library(tmp_path):
    model, tokenizer = made(LLAMA3, bos="<s>", eos="<|endoftext|>")
    models.save(model, tokenizer, tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(saved(IDS).logits, model(IDS).logits)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == LLAMA3
    # eos, and what the template ends a turn with
    stops = {tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|eot_id|>")}
    generation = GenerationConfig.from_pretrained(tmp_path)
    assert set(generation.eos_token_id) == stops and generation.pad_token_id == tokenizer.pad_token_id


def test_whole_weights_may_be_given(tmp_path):
    model, tokenizer = made()
    given = {name: value + 1 for name, value in model.state_dict().items()}
    models.save(model, tokenizer, tmp_path, given)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(saved.lm_head.weight, model.lm_head.weight + 1)


def test_a_generation_config_that_the_library_refuses_does_not_cost_the_model(tmp_path):
    """Llama-2's shipped one had temperature and top_p beside do_sample=False."""
    model, tokenizer = made()
    model.generation_config.update(do_sample=False, temperature=0.6, top_p=0.9)
    models.save(model, tokenizer, tmp_path / "odd")
    saved = GenerationConfig.from_pretrained(tmp_path / "odd")
    assert saved.temperature == 0.6 and saved.do_sample and saved.eos_token_id
    model, tokenizer = made()
    models.save(model, tokenizer, tmp_path / "plain")
    assert not GenerationConfig.from_pretrained(tmp_path / "plain").do_sample


def test_an_adapter_is_saved_without_its_base(tmp_path):
    model, tokenizer = made()
    models.save(lora.add(model, Lora(rank=4), "base"), tokenizer, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    assert (
        not (tmp_path / "model.safetensors").exists() and not (tmp_path / lora.NOTE).exists()
    )  # no note on plain weights
    assert (tmp_path / "tokenizer.json").exists() and (tmp_path / "generation_config.json").exists()
