"""What is saved loads with the plain libraries, and stops where the loops' own sampler does."""

import json

import torch
from kit import CHATML, LLAMA3, bytelevel_tokenizer, run_loop, tiny_folder, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from loops import sft
from posttrain import models
from posttrain.config.keys import Lora
from posttrain.models import lora
from posttrain.rollouts.asking import ask
from posttrain.tokens import template

IDS = torch.arange(20, 40)[None]
ENDS = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>"]


def made(jinja=CHATML, **tokens):
    tokenizer = bytelevel_tokenizer(jinja, **tokens)
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


def test_every_id_that_ended_an_answer_still_does(tmp_path):
    """As Llama 3.1 and Qwen ship it: the turn's end, the text's end, and one that no template writes."""
    tokenizer = bytelevel_tokenizer(CHATML)
    path, ids = tiny_folder(tmp_path / "llama", tokenizer=tokenizer), sorted(tokenizer.convert_tokens_to_ids(ENDS))
    generation = tmp_path / "llama/generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": ids}))
    _, tokenizer, _ = models.load(path)
    assert template.stop_ids(tokenizer) == ids

    rows = [{"prompt": f"{i}?", "completion": "Yes."} for i in range(8)]
    for adapter in ("none", "lora"):
        run_loop(sft, path, tmp_path, rows=rows, model__adapter=adapter, training__max_steps=1)
        saved = json.loads((tmp_path / "run/model/generation_config.json").read_text())
        assert saved["eos_token_id"] == ids, adapter
        assert template.stop_ids(models.load(str(tmp_path / "run/model"))[1]) == ids, adapter


def test_the_sampler_stops_at_an_end_that_only_the_model_names(tmp_path):
    tokenizer = bytelevel_tokenizer(CHATML)
    path, eot = tiny_folder(tmp_path / "llama", tokenizer=tokenizer), tokenizer.convert_tokens_to_ids("<|eot_id|>")
    (tmp_path / "llama/generation_config.json").write_text(json.dumps({"eos_token_id": [eot]}))
    model, tokenizer, _ = models.load(path)
    prompt = template.prompt_ids(tokenizer, [{"role": "user", "content": "Hi."}])
    head = model.get_output_embeddings().weight.data
    head[eot] = 100 * head.abs().max() * model.model.norm.weight.data.sign()  # whatever it reads, or its opposite
    said = ask(model, tokenizer, [prompt], max_new_tokens=8, group_size=16, temperature=1.0)
    ended = [ids for ids in said.completion_ids if eot in ids]
    assert ended and all(ids.index(eot) == len(ids) - 1 for ids in ended)


def test_an_adapter_on_quantised_weights_says_so(tmp_path, llama):
    model, tokenizer, _ = models.load(llama, quantization="8bit")
    models.save(lora.add(model, Lora(rank=4), llama), tokenizer, tmp_path)
    assert json.loads((tmp_path / lora.NOTE).read_text()) == {"quantization": "8bit", "dtype": "float32"}
