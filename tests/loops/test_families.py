"""The architectures that people bring, each a small random instance with its own tokenizer and kind of template: they train
with every weight, with LoRA and with LoRA on 4 and 8 bits, and what is saved loads with the plain libraries."""

import math

import pytest
import torch
from kit import FAMILIES, tiny_family, yaml_config
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from loops import dpo, grpo, sft
from posttrain import ROOT
from posttrain.models import quantize
from posttrain.tokens import template

CHATS, HH, WORDS = (str(ROOT / "tests/data" / name) for name in ("chats.jsonl", "hh.jsonl", "word_problems.jsonl"))
HOW = {"none": {}, "lora": {"model.adapter": "lora"}} | {
    bits: {"model.adapter": "lora", "model.quantization": bits} for bits in ("4bit", "8bit")
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("families")
    return {kind: tiny_family(path / kind, kind) for kind in FAMILIES}


def run(loop, kind, folders, tmp_path, **overrides):
    data = {"sft": CHATS, "dpo": HH, "grpo": WORDS}[loop]
    small = {"grpo.prompts_per_step": 2, "grpo.group_size": 3, "grpo.max_new_tokens": 6} if loop == "grpo" else {}
    reward = {"reward": lambda completions: [float(len(c)) for c in completions]} if loop == "grpo" else {}
    if kind == "gemma":
        small["data.system_prompt"] = None
    fixed = {
        "model.name": folders[kind], "data.name": data, "data.max_length": 250, "data.overlong": "truncate_prompt", "output.samples": 1,
        "output.dir": str(tmp_path / "run"), "output.overwrite": True, "training.max_steps": 2, "training.learning_rate": 1e-3,
        "training.warmup_steps": 0, "training.device": "cpu",
    }  # fmt: skip
    config = yaml_config(loop, **fixed | small | overrides)  # the configs of hub models, not the tiny ones
    return {"sft": sft, "dpo": dpo, "grpo": grpo}[loop].train(config, **reward)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_architecture_trains(tmp_path, folders, kind, how):
    """SFT, two steps: every trainable tensor moves, every frozen one stays, and the saved folder loads with the plain
    library: same logits, same stop ids, same chat template."""
    result = run("sft", kind, folders, tmp_path, **HOW[how])
    assert all(math.isfinite(m["loss"]) for m in result.metrics)
    saved, tokenizer = result.folder / "model", AutoTokenizer.from_pretrained(result.folder / "model")
    ids = torch.tensor([template.prompt_ids(tokenizer, [{"role": "user", "content": "What is a tap?"}])])
    if how == "none":
        plain = AutoModelForCausalLM.from_pretrained(saved)
    else:
        from peft import AutoPeftModelForCausalLM

        bits = {f"load_in_{how}": True} if how in ("4bit", "8bit") else {}
        if bits:
            from transformers import BitsAndBytesConfig

            if how == "4bit":
                bits |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
            bits = {"quantization_config": BitsAndBytesConfig(**bits)}
        plain = AutoPeftModelForCausalLM.from_pretrained(saved, dtype=torch.float32, **bits)
    ours, theirs = result.model.eval()(input_ids=ids).logits, quantize.guard(plain.eval())(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5 if how != "8bit" else 0.02 * ours.abs().max().item(), rtol=0)
    assert GenerationConfig.from_pretrained(saved).eos_token_id == template.stop_ids(result.tokenizer)
    assert tokenizer.chat_template == result.tokenizer.chat_template

    before = dict(AutoModelForCausalLM.from_pretrained(folders[kind]).named_parameters())
    for name, p in result.model.named_parameters():
        if how == "none":
            assert not torch.equal(p, before[name]), name
        elif "lora_B" in name:
            assert p.requires_grad and p.abs().max() > 0, name  # starts at 0
        elif "lora_" not in name:
            assert not p.requires_grad
            plain_name = name.removeprefix("base_model.model.").replace(".base_layer", "")
            if p.dtype == torch.float32:
                assert torch.equal(p, before[plain_name]), name


@pytest.mark.parametrize("how", ["none", "4bit"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_architecture_runs_dpo_from_ln_2(tmp_path, folders, kind, how):
    result = run("dpo", kind, folders, tmp_path, **HOW[how])
    assert result.metrics[0]["dpo_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert result.metrics[1]["dpo_loss"] != pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("how", ["lora", "4bit"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_architecture_runs_grpo(tmp_path, folders, kind, how):
    """The preflight inside compares the sampler's log-probs with the trainer's, to 1e-4."""
    result = run("grpo", kind, folders, tmp_path, **HOW[how])
    assert result.metrics[0]["kl"] == pytest.approx(0, abs=1e-6) and result.metrics[0]["grad_norm"] > 0


def test_eight_bits_in_rl(tmp_path, folders):
    assert run("grpo", "llama", folders, tmp_path, **HOW["8bit"]).metrics[0]["grad_norm"] > 0
