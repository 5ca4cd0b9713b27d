"""Run by torchrun from test_sharded.py: a loop on a model that native fully_shard has spread over the processes (FSDP2), or not.

    torchrun … sharded.py METHOD MODEL OUT plain|sharded [resume]

Accelerate on a CPU turns FSDP into DDP without a word; here the model is sharded by hand just before Run.prepare gets it,
which is when Accelerate would do it on a GPU."""

import sys
from pathlib import Path

from torch.distributed.fsdp import fully_shard

from posttrain import ROOT

sys.path.insert(0, str(Path(__file__).parent))
from kit import even_tokens
from two_processes import DPO, GRPO, SFT

from loops import dpo, grpo, sft
from posttrain.config import load
from posttrain.errors import clear_exit
from posttrain.run.training import Run


def main(method: str, model: str, out: str, how: str, resume: str = "") -> None:
    prepare = Run.prepare

    def sharding(self, policy, *arguments):
        for layer in policy._causal_lm.base_model.layers:
            fully_shard(layer)
        return prepare(self, fully_shard(policy), *arguments)

    if how == "sharded":
        Run.prepare = sharding
    shared = {
        "model.name": model, "output.dir": out, "training.micro_batch_size": 1, "training.learning_rate": 1e-2, "training.max_steps": 5,
        "training.max_grad_norm": 0.05, "training.schedule": "constant", "training.warmup_steps": 0, "training.weight_decay": 0.1,
        "training.save_every": 3, "training.keep_checkpoints": 5, "output.samples": 2, "resume": bool(resume),
    }  # fmt: skip
    if method == "grpo":
        rl = {"grpo.prompts_per_step": 3, "grpo.group_size": 4, "grpo.max_new_tokens": 6, "grpo.inner_epochs": 2}
        grpo.train(load(ROOT / "configs/grpo_tiny.yaml", shared | rl), rows=GRPO, reward=even_tokens)
        return
    if method == "dpo-copy":  # the reference: the adapter's own starting weights, laid into the sharded policy
        lora = {"model.adapter": "lora", "model.reference": "copy", "training.batch_size": 5}
        dpo.train(load(ROOT / "configs/dpo_tiny.yaml", shared | lora), rows=DPO)
        return
    held_out = {"data.validation_split": 0.2, "training.eval_every": 2, "training.batch_size": 5}
    adapter = {"model.adapter": "lora"} if method == "sft-lora" else {}
    sft.train(load(ROOT / "configs/sft_tiny.yaml", shared | held_out | adapter), rows=SFT)


if __name__ == "__main__":
    with clear_exit():
        main(*sys.argv[1:])
