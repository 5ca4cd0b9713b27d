"""A saved model stops where it stopped before, and where the loops' own sampler does."""

import json

from small import CHATML, bytelevel_tokenizer, folder

from loops import sft
from posttrain import ROOT, models
from posttrain.config import load
from posttrain.rollouts.asking import ask
from posttrain.tokens import template

ENDS = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>"]


def test_every_id_that_ended_an_answer_still_does(tmp_path):
    """As Llama 3.1 and Qwen ship it: the turn's end, the text's end, and one that no template writes."""
    tokenizer = bytelevel_tokenizer(CHATML)
    path, ids = folder(tmp_path / "llama", tokenizer=tokenizer), sorted(tokenizer.convert_tokens_to_ids(ENDS))
    generation = tmp_path / "llama/generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": ids}))
    _, tokenizer, _ = models.load(path)
    assert template.stop_ids(tokenizer) == ids

    config = load(
        ROOT / "configs/sft_tiny.yaml",
        {"model.name": path, "output.dir": str(tmp_path / "run"), "output.samples": 0, "training.max_steps": 1},
    )
    for adapter in ("none", "lora"):
        config.model.adapter, config.output.overwrite = adapter, True
        sft.train(config, rows=[{"prompt": f"{i}?", "completion": "Yes."} for i in range(8)])
        saved = json.loads((tmp_path / "run/model/generation_config.json").read_text())
        assert saved["eos_token_id"] == ids, adapter
        assert template.stop_ids(models.load(str(tmp_path / "run/model"))[1]) == ids, adapter


def test_the_sampler_stops_at_an_end_that_only_the_model_names(tmp_path):
    tokenizer = bytelevel_tokenizer(CHATML)
    path, eot = folder(tmp_path / "llama", tokenizer=tokenizer), tokenizer.convert_tokens_to_ids("<|eot_id|>")
    (tmp_path / "llama/generation_config.json").write_text(json.dumps({"eos_token_id": [eot]}))
    model, tokenizer, _ = models.load(path)
    prompt = template.prompt_ids(tokenizer, [{"role": "user", "content": "Hi."}])
    head = model.get_output_embeddings().weight.data
    head[eot] = 100 * head.abs().max() * model.model.norm.weight.data.sign()  # whatever it reads, or its opposite
    said = ask(model, tokenizer, [prompt], max_new_tokens=8, group_size=16, temperature=1.0)
    ended = [ids for ids in said.completion_ids if eot in ids]
    assert ended and all(ids.index(eot) == len(ids) - 1 for ids in ended)
