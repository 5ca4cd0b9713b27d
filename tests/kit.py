"""What tests build from: random models of real architectures, tokenizers of real kinds, and short runs of every loop."""

import contextlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from posttrain import ROOT
from posttrain.config import load
from posttrain.config.supervised import SftData
from posttrain.data.rows import load_rows
from posttrain.models.memory import Shape
from posttrain.run.parallel import Parallel

TEXT = [
    "Question: Natalia sold 48 clips in April. How many did she sell in May? Answer: 48 / 2 = 24 clips. #### 72",
    "Hello. What is your name? My name is Nova. You can call me Robin, your assistant. A1 A2 one two three.",
    "system user assistant Human: Assistant: the quick brown fox jumps over the lazy dog, 0 1 2 3 4 5 6 7 8 9 + - * =",
] * 20

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Shows the last reply's thoughts only: an earlier turn is written differently once it is no longer the last
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen2.5: a default system prompt where the conversation brings none
INJECTS = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Trims every message, the assistant's too
TRIMS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SEAM = "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"


def bytelevel_tokenizer(
    template: str | None = CHATML, *, pad: str | None = "<|pad|>", eos: str = "<|im_end|>", bos: str | None = None
):
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
               "<start_of_turn>", "<end_of_turn>", "<s>", "</s>", "<|pad|>"]  # fmt: skip
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    names = {k: v for k, v in (("pad_token", pad), ("bos_token", bos)) if v}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, chat_template=template, **names)


def sentencepiece_tokenizer(template: str = SEAM):
    """Llama-2's kind: a space becomes ▁, and one is put before the first word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=420, special_tokens=special[:3], show_progress=False)
    )
    tokenizer.add_tokens(special[3:])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


SIZES = {
    "llama": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4),
    "qwen2": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2),
    "qwen3": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                  head_dim=8),
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=256, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1),
    "opt": dict(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32, dropout=0.1),
    "gemma": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                  head_dim=8),
    "gemma2": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                   head_dim=8, final_logit_softcapping=2.0),
    "mistral": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2),
}  # fmt: skip

MORE_KINDS = {
    "granite": dict(SIZES["qwen2"], logits_scaling=3.0, attention_multiplier=0.4, residual_multiplier=0.5, embedding_multiplier=2.0),
    "cohere": dict(SIZES["qwen2"], logit_scale=0.3),
    "gpt_neox": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4),
    "phi3": SIZES["qwen2"],
    "olmo2": SIZES["qwen2"],
    "mixtral": dict(SIZES["qwen2"], num_local_experts=4),
}  # fmt: skip


def tiny_model(kind: str = "llama", vocab_size: int = 411, seed: int = 0, **changes):
    torch.manual_seed(seed)
    sizes = SIZES[kind] | {
        "vocab_size": vocab_size,
        "max_position_embeddings": 256,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if kind == "gpt2":
        del sizes["max_position_embeddings"]
    return spread_out(AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes | changes)))


def model_of_any(kind: str, **changes):
    """Of SIZES or MORE_KINDS."""
    if kind in SIZES:
        return tiny_model(kind, **changes)
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](vocab_size=411, max_position_embeddings=256, pad_token_id=None, bos_token_id=None, eos_token_id=None, **MORE_KINDS[kind] | changes)  # fmt: skip
    return spread_out(AutoModelForCausalLM.from_config(config))


def spread_out(made):
    """Weights far from the initial near-uniform softmax, so that mistakes show."""
    for p in made.parameters():
        if p.ndim >= 2:
            torch.nn.init.normal_(p, std=0.15)
    return made


def llama_shape(**changes: int) -> Shape:
    """Of tiny_model("llama", 500): 4 x 32 x 32 weights in attention and 3 x 32 x 64 in the MLP = 10,240 a layer, 20,480
    in all."""
    sizes = {"hidden": 32, "intermediate": 64, "heads": 4, "queries": 32, "key_value": 32, "longest": 256}
    counts = {
        "parameters": 52_640,
        "linear": 20_480,
        "outside": 32_032,
        "adapter": 0,
        "rank": 0,
        "layers": 2,
        "vocabulary": 500,
    }
    return Shape(**sizes | counts | changes)


# Each architecture with its own kind of template, turn end and bos: what its users bring
FAMILIES = {
    "llama": dict(template=LLAMA3, bos="<s>", eos="<|eot_id|>"),
    "qwen2": dict(template=INJECTS, eos="<|im_end|>"),
    "qwen3": dict(template=FORGETFUL, eos="<|im_end|>"),
    "opt": dict(template=None, bos="</s>", eos="</s>", pad=None),
    "gpt2": dict(template=TRIMS, eos="<|endoftext|>", pad=None),
    "gemma": dict(template=GEMMA, bos="<s>", eos="<end_of_turn>"),
}


def tiny_family(path: Path, kind: str, **changes) -> str:
    return tiny_folder(path, kind, bytelevel_tokenizer(**FAMILIES[kind]), **changes)


def tiny_folder(path: Path, kind: str = "llama", tokenizer=None, **changes) -> str:
    """A local model folder as a user would bring it: weights, config, tokenizer."""
    tokenizer = tokenizer or bytelevel_tokenizer()
    tiny_model(kind, len(tokenizer), **changes).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


# ---------------------------------------------------------------- rows


def write_jsonl(path: Path, rows: list) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def rows_for(method: str, rows: list | None = None, **data: Any) -> Any:
    """What the loop of `method` reads of `rows`, or of data.name, under these keys of the data group."""
    return load_rows(SftData(**data), method, rows)


# ---------------------------------------------------------------- short runs

# What every short run of a method shares: a few steps of few rows. A test shows what it changes.
SMALL: dict[str, dict[str, Any]] = {
    "pretrain": {  # four steps of two rows of 32 tokens
        "model.shape": dict(SIZES["llama"], max_position_embeddings=64), "data.max_length": 32, "training.max_steps": 4,
        "training.batch_size": 2, "training.warmup_steps": 0, "pretrain.check": None,
    },
    "sft": {"training.batch_size": 4, "training.learning_rate": 1e-3, "training.epochs": 1},
    "dpo": {
        "training.batch_size": 4, "training.learning_rate": 1e-3, "training.epochs": 1, "model.adapter": "none",
        "dpo.sft_weight": 0.0,
    },
    "simpo": {"training.batch_size": 4, "training.learning_rate": 1e-3, "training.epochs": 1, "model.adapter": "none"},
    "kto": {
        "training.batch_size": 4, "training.learning_rate": 1e-3, "training.epochs": 1, "training.max_steps": None,
        "model.adapter": "none",
    },
    "distill": {
        "training.batch_size": 4, "training.learning_rate": 1e-3, "training.epochs": 1, "training.max_steps": None,
        "distill.max_new_tokens": 6,
    },
    "reward": {
        "training.batch_size": 4, "training.learning_rate": 1e-3, "training.epochs": 1, "training.warmup_steps": 0,
        "data.validation_split": 0, "training.eval_every": None,
    },
    "grpo": {
        "training.max_steps": 3, "training.learning_rate": 1e-3, "training.warmup_steps": 0, "grpo.prompts_per_step": 2,
        "grpo.group_size": 4, "grpo.max_new_tokens": 8,
    },
    "ppo": {
        "training.max_steps": 4, "training.learning_rate": 1e-3, "training.warmup_steps": 0,
        "training.micro_batch_size": 8, "data.validation_split": 0, "training.eval_every": None,
        "ppo.prompts_per_step": 8, "ppo.minibatches": 2, "ppo.inner_epochs": 2, "ppo.max_new_tokens": 6, "ppo.kl_coef": 0.05,
    },
}  # fmt: skip


def yaml_config(name: str, **changes: Any) -> Any:
    """configs/NAME.yaml with training__epochs=2 (or **{"training.epochs": 2}) instead of what it says."""
    return load(ROOT / f"configs/{name}.yaml", {key.replace("__", "."): value for key, value in changes.items()})


# The tiny config of a loop that has none in configs/ itself
BASES = {"simpo": "variants/simpo", "kto": "variants/kto", "distill": "variants/gkd"}


def tiny_config(method: str) -> str:
    """The name of a loop's tiny config, below configs/."""
    return f"{BASES.get(method, method)}_tiny"


def small_config(method: str, model: str | None, place: Path, **changes: Any) -> Any:
    """A short run of `method` on the model folder `model`, into `place`/run: SMALL, with these changes."""
    fixed = {"output.dir": str(place / "run"), "output.overwrite": True, "output.samples": 0, **SMALL[method]}
    if model is not None:
        fixed["model.name"] = model
    return yaml_config(tiny_config(method), **fixed | {key.replace("__", "."): value for key, value in changes.items()})


def run_loop(loop: ModuleType, model: str | None, place: Path, *, rows=None, reward=None, **changes: Any) -> Any:
    """A short run of loops.sft, loops.dpo …: its Result."""
    config = small_config(loop.__name__.removeprefix("loops."), model, place, **changes)
    given = {name: value for name, value in (("rows", rows), ("reward", reward)) if value is not None}
    return loop.train(config, **given)


def whole_models(autocast=contextlib.nullcontext) -> Parallel:
    """run.parallel of a run whose processes have whole models, here on the CPU."""
    return Parallel(torch.device("cpu"), autocast)


def fsdp2_of(dtype: str) -> Any:
    """What Accelerate makes of configs/accelerate/fsdp2.yaml, with its own mixed precision. Accelerate itself turns FSDP
    into DDP on a CPU, without a word."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="TRANSFORMER_BASED_WRAP", reshard_after_forward=True
    )
    if dtype == "bfloat16":
        plugin.set_mixed_precision("bf16")  # as Accelerator() does
    return plugin


def environment(**more: str) -> dict[str, str]:
    """For a process that a test starts: it finds the project and this file, and has one thread."""
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CI": "1"} | more


def metric(result: Any, name: str) -> list[float]:
    """One number of every step."""
    return [row[name] for row in result.metrics]


def right_or_wrong(completion_ids: list[list[int]]) -> list[float]:
    """A verifiable reward that a random model earns now and then: is the third token a multiple of four?"""
    return [float(len(ids) > 2 and ids[2] % 4 == 0) for ids in completion_ids]


def even_tokens(completion_ids: list[list[int]]) -> list[float]:
    """A reward that a random model can earn: the share of even token ids."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]
