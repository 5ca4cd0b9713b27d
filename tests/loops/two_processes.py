"""Run by torchrun (or plain python) from test_processes.py: one short training, its metrics and weights written by rank 0."""

import json
import sys
from pathlib import Path

import torch
from kit import even_tokens, right_or_wrong, small_config

from loops import distill, dpo, grpo, kto, ppo, reward, sft, simpo
from posttrain import ROOT
from posttrain.errors import clear_exit

SFT = [{"prompt": f"What is {i} + {i}?", "completion": f"It is {2 * i}." + " Yes, it is." * (i % 3)} for i in range(7)]
DPO = [
    {"prompt": f"Q {i}?", "chosen": f"Yes, {i}." + " Sure." * (i % 3), "rejected": "No." + " Never." * (i % 2)}
    for i in range(7)
]
KTO = [{"prompt": row["prompt"], "completion": row["chosen"], "label": i % 3 > 0} for i, row in enumerate(DPO)]
GRPO = [{"prompt": f"Question {i}?" + " Hm." * (i % 3)} for i in range(7)]

SHARED = {
    "training.micro_batch_size": 2,
    "training.max_steps": 4,
    "training.schedule": "constant",
    "training.warmup_steps": 0,
}
HELD_OUT = {"data.validation_split": 0.2, "training.eval_every": 2}
CASES = {  # 7 rows in windows of 5 and 2, then again: odd numbers everywhere
    "sft": (sft, SFT, {"training.batch_size": 5, **HELD_OUT}),
    # packed rows of 90 tokens: 2 or 3 conversations each
    "packed": (sft, SFT, {"training.batch_size": 5, "training.packing": True, "data.max_length": 90, "training.micro_batch_size": 1}),
    "stream": (sft, None, {"training.batch_size": 3, "data.name": str(ROOT / "tests/data/chats.jsonl"), "data.streaming": True}),
    "dpo": (dpo, DPO, {"training.batch_size": 5, "dpo.sft_weight": 1.0}),
    "dpo-ipo": (dpo, DPO, {"training.batch_size": 5, "dpo.loss": "ipo", "dpo.length_normalize": True, **HELD_OUT}),
    "simpo": (simpo, DPO, {"training.batch_size": 5, "simpo.loss": "orpo", **HELD_OUT}),
    # windows of 6 and of 1, which has no other row
    # Shared in one process and in two: else the rows lie otherwise, and Adam makes a step of the last bit.
    "kto": (kto, KTO, {"training.batch_size": 6, "training.learning_rate": 1e-3, "training.share_prompts": True}),
    "distill": (distill, SFT, {"training.batch_size": 5, "distill.on_policy": 0.6, **HELD_OUT}),
    "reward": (reward, DPO, {"training.batch_size": 5, **HELD_OUT}),
    "grpo": (grpo, GRPO, {"grpo.prompts_per_step": 3, "grpo.max_new_tokens": 6, "grpo.minibatches": 2}),
    "dynamic": (grpo, GRPO, {"grpo.prompts_per_step": 3, "grpo.max_new_tokens": 6, "grpo.minibatches": 2, "grpo.dynamic_sampling": True,
                             "grpo.overlong_cache": 2, "grpo.advantage": "batch", "grpo.advantage_scale": "none",
                             "grpo.importance_weights": "truncated"}),
    "taught": (grpo, GRPO, {"grpo.prompts_per_step": 5, "grpo.group_size": 1, "grpo.max_new_tokens": 6, "grpo.advantage": "teacher",
                            "grpo.advantage_scale": "none", "grpo.reward": None, "grpo.inner_epochs": 2, "grpo.importance_weights": "truncated"}),
    "ppo": (ppo, GRPO, {"ppo.prompts_per_step": 4, "ppo.kl_coef": 0.02, **HELD_OUT}),
}  # fmt: skip


def main(method: str, model: str, out: str, adapter: str) -> None:
    loop, rows, changes = CASES[method]
    if adapter == "4bit":
        changes = changes | {"model.quantization": adapter}
    if method == "dpo":
        changes = changes | {"dpo.precompute": adapter == "none"}
    if method == "ppo":
        changes = changes | {"ppo.critic": "shared" if adapter == "lora" else "separate"}
    adapter = "none" if adapter == "none" else "lora"
    name = loop.__name__.removeprefix("loops.")
    if method in ("distill", "taught"):
        changes = changes | {f"{name}.teacher": f"{model}-teacher"}
    config = small_config(name, model, Path(out), **SHARED | {"model.adapter": adapter} | changes)
    rewarded = loop in (grpo, ppo) and method != "taught"
    given = {"reward": right_or_wrong if method == "dynamic" else even_tokens} if rewarded else {}
    result = loop.train(config, rows=rows, **given)
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    Path(out, "metrics.json").write_text(json.dumps(result.metrics))
    torch.save(
        {n: p.detach().clone() for n, p in result.model.named_parameters() if p.requires_grad}, Path(out, "weights.pt")
    )


if __name__ == "__main__":
    with clear_exit():
        main(*sys.argv[1:])
