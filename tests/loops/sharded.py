"""Run by torchrun from test_sharded.py: a loop whose models are spread over the processes (FSDP2), or whole on each.

    torchrun … sharded.py METHOD MODEL OUT plain|sharded [KEY=VALUE …]

Accelerate on a CPU turns FSDP into DDP without a word; here the run is told what it would be told on a GPU."""

import sys
from pathlib import Path

from posttrain import ROOT

sys.path.insert(0, str(Path(__file__).parent))
from kit import SMALL, even_tokens, fsdp2_of, tiny_config
from two_processes import DPO, GRPO, KTO, SFT

from loops import distill, dpo, grpo, kto, ppo, pretrain, reward, sft, simpo
from posttrain.config import load
from posttrain.config.command_line import parse
from posttrain.errors import clear_exit
from posttrain.run import training
from posttrain.run.parallel import Parallel

SHARED = {
    "training.micro_batch_size": 1, "training.learning_rate": 1e-2, "training.max_steps": 5, "training.max_grad_norm": 0.05,
    "training.schedule": "constant", "training.warmup_steps": 0, "training.weight_decay": 0.1, "training.save_every": 3,
    "training.keep_checkpoints": 5, "output.samples": 2,
}  # fmt: skip
HELD_OUT = {"data.validation_split": 0.2, "training.eval_every": 2}  # of 7 prompts one: a process has none
RL = {"max_new_tokens": 6, "prompts_per_step": 4}
CASES = {
    "pretrain": (pretrain, None, {**SMALL["pretrain"], "training.max_steps": 5}),  # which makes its model
    "sft": (sft, SFT, {"training.batch_size": 5, **HELD_OUT}),
    "sft-lora": (sft, SFT, {"training.batch_size": 5, "model.adapter": "lora", **HELD_OUT}),
    # the reference: the adapter's own starting weights, laid into the sharded policy
    "dpo-lora-copy": (dpo, DPO, {"training.batch_size": 5, "model.adapter": "lora", "model.reference": "copy"}),
    # the reference: a second model, sharded as well
    "dpo": (dpo, DPO, {"training.batch_size": 5, "model.adapter": "none", "dpo.precompute": False}),
    "simpo": (simpo, DPO, {"training.batch_size": 5, "model.adapter": "none", "simpo.loss": "orpo", **HELD_OUT}),
    "kto": (kto, KTO, {"training.batch_size": 5, "model.adapter": "none", **HELD_OUT}),
    "kto-lora": (kto, KTO, {"training.batch_size": 5, "model.adapter": "lora"}),
    "distill": (distill, SFT, {"training.batch_size": 5, "distill.on_policy": 0.6, "distill.max_new_tokens": 6, **HELD_OUT}),
    "reward": (reward, DPO, {"training.batch_size": 5, **HELD_OUT}),
    "grpo": (grpo, GRPO, {"grpo.prompts_per_step": 3, "grpo.group_size": 4, "grpo.max_new_tokens": 6, "grpo.inner_epochs": 2, "grpo.kl_coef": 0.1, "training.learning_rate": 1e-3, **HELD_OUT}),
    "taught": (grpo, GRPO, {"grpo.prompts_per_step": 5, "grpo.group_size": 1, "grpo.max_new_tokens": 6, "grpo.kl_coef": 0, "grpo.reward": None,
                            "grpo.advantage": "teacher", "grpo.advantage_scale": "none", "training.learning_rate": 1e-3}),
    "ppo": (ppo, GRPO, {"ppo.critic": "separate", "ppo.minibatches": 2, "model.adapter": "none", **HELD_OUT} | {f"ppo.{k}": v for k, v in RL.items()}),
    "ppo-shared": (ppo, GRPO, {"ppo.critic": "shared", "ppo.minibatches": 2, **HELD_OUT} | {f"ppo.{k}": v for k, v in RL.items()}),
}  # fmt: skip


class Told(Parallel):
    @classmethod
    def of(cls, accelerator):
        precision = "bfloat16" if accelerator.mixed_precision == "bf16" else "float32"
        return cls(accelerator.device, accelerator.autocast, fsdp2_of(precision))


def main(method: str, model: str, out: str, how: str, *changes: str) -> None:
    if how == "sharded":
        training.Parallel = Told
    loop, rows, own = CASES[method]
    name = loop.__name__.removeprefix("loops.")
    _, told = parse([f"--{change}" for change in changes])
    if learned := f"{name}.reward_model" in told:
        told[f"{name}.reward"] = None
    own = own if loop is pretrain else {"model.name": model, **own}
    if method in ("distill", "taught"):
        own[f"{name}.teacher"] = f"{model}-teacher"
    config = load(ROOT / f"configs/{tiny_config(name)}.yaml", {"output.dir": out, **SHARED, **own, **told})
    given = {"reward": even_tokens} if loop in (grpo, ppo) and not learned and method != "taught" else {}
    loop.train(config, **given if rows is None else {"rows": rows, **given})


if __name__ == "__main__":
    with clear_exit():
        main(*sys.argv[1:])
