"""Run by torchrun (or plain python) from test_processes.py: one short training, its metrics and weights written by rank 0."""

import json
import sys
from pathlib import Path

import torch

from loops import dpo, grpo, ppo, reward, sft
from posttrain import ROOT
from posttrain.config import load

SFT = [{"prompt": f"What is {i} + {i}?", "completion": f"It is {2 * i}." + " Yes, it is." * (i % 3)} for i in range(7)]
DPO = [
    {"prompt": f"Q {i}?", "chosen": f"Yes, {i}." + " Sure." * (i % 3), "rejected": "No." + " Never." * (i % 2)}
    for i in range(7)
]
GRPO = [{"prompt": f"Question {i}?" + " Hm." * (i % 3)} for i in range(7)]


def even_tokens(completion_ids):
    return [sum(t % 2 == 0 for t in ids) / len(ids) for ids in completion_ids]


def main(method: str, model: str, out: str, adapter: str) -> None:
    bits, adapter = (adapter, "lora") if adapter == "4bit" else ("none", adapter)
    fixed = {
        "model.name": model, "model.adapter": adapter, "model.quantization": bits, "output.dir": f"{out}/run", "output.overwrite": True, "output.samples": 0,
        "training.micro_batch_size": 2, "training.learning_rate": 1e-3, "training.max_steps": 4, "training.schedule": "constant",
        "training.warmup_steps": 0,
    }  # fmt: skip
    if method == "sft":  # 7 rows in windows of 5 and 2, then again: odd numbers everywhere
        config = load(
            ROOT / "configs/sft_tiny.yaml",
            fixed | {"training.batch_size": 5, "data.validation_split": 0.2, "training.eval_every": 2},
        )
        result = sft.train(config, rows=SFT)
    elif method == "reward":
        config = load(
            ROOT / "configs/reward_tiny.yaml",
            fixed | {"training.batch_size": 5, "data.validation_split": 0.2, "training.eval_every": 2},
        )
        result = reward.train(config, rows=DPO)
    elif method == "ppo":
        config = load(
            ROOT / "configs/ppo_tiny.yaml",
            fixed
            | {
                "data.validation_split": 0.2,
                "training.eval_every": 2,
                "ppo.prompts_per_step": 4,
                "ppo.max_new_tokens": 6,
                "ppo.minibatches": 2,
                "ppo.critic": "shared" if adapter == "lora" else "separate",
            },
        )
        result = ppo.train(config, rows=GRPO, reward=even_tokens)
    elif method == "packed":  # packed rows of 90 tokens: 2 or 3 conversations each
        config = load(
            ROOT / "configs/sft_tiny.yaml",
            fixed
            | {
                "training.batch_size": 5,
                "training.packing": True,
                "data.max_length": 90,
                "training.micro_batch_size": 1,
            },
        )
        result = sft.train(config, rows=SFT)
    elif method == "stream":
        config = load(
            ROOT / "configs/sft_tiny.yaml",
            fixed
            | {"training.batch_size": 3, "data.name": str(ROOT / "tests/data/chats.jsonl"), "data.streaming": True},
        )
        result = sft.train(config)
    elif method == "dpo":
        config = load(
            ROOT / "configs/dpo_tiny.yaml", fixed | {"training.batch_size": 5, "dpo.precompute": adapter == "none"}
        )
        result = dpo.train(config, rows=DPO)
    else:
        config = load(
            ROOT / "configs/grpo_tiny.yaml",
            fixed | {"grpo.prompts_per_step": 3, "grpo.group_size": 4, "grpo.max_new_tokens": 6, "grpo.minibatches": 2},
        )
        result = grpo.train(config, rows=GRPO, reward=even_tokens)
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    Path(out, "metrics.json").write_text(json.dumps(result.metrics))
    torch.save(
        {n: p.detach().clone() for n, p in result.model.named_parameters() if p.requires_grad}, Path(out, "weights.pt")
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
