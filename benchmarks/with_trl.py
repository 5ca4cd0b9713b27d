"""Seconds of each optimiser step of TRL's own trainer, on the model and rows of benchmarks.speed.

    PYTHON benchmarks/with_trl.py sft MODEL rows.json STEPS [SEED]        (or dpo, grpo); prints a list in JSON

PYTHON is that of an environment with TRL (`pip install trl==1.16.0` beside requirements.txt); benchmarks.speed calls
this with `--with-trl PYTHON`. Nothing else of this project imports TRL. Settings are those of the loops: float32, no
gradient checkpointing, batch 8 (GRPO 4 prompts x 8 answers), the DPO reference precomputed.
"""

import json
import sys
import tempfile
import time

import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

PROMPTS, GROUP, NEW = 4, 8, 64


class Clock(TrainerCallback):
    """The end of each step; of the first, since its begin."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.marks:
            self.marks.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):
        self.marks.append(time.perf_counter())


def chat(text: str, role: str) -> list[dict]:
    return [{"role": role, "content": text}]


def even_tokens(completion_ids: list[list[int]], **_: object) -> list[float]:
    """A reward that random weights can win, and lose."""
    return [sum(token % 2 == 0 for token in ids) / max(1, len(ids)) for ids in completion_ids]


def main(method: str, name: str, file: str, steps: int, seed: int = 0) -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(2)
    with open(file) as lines:
        rows = json.load(lines)
    clock, folder = Clock(), tempfile.mkdtemp()
    given = {
        "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": 8, "learning_rate": 1e-5, "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "logging_strategy": "no", "seed": seed,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(name)
    common = {"model": model, "processing_class": tokenizer, "callbacks": [clock]}
    if method == "sft":
        data = [{"prompt": chat(r["question"], "user"), "completion": chat(r["answer"], "assistant")} for r in rows]
        config = trl.SFTConfig(**given, max_length=1024)
        trainer = trl.SFTTrainer(args=config, train_dataset=Dataset.from_list(data), **common)
    elif method == "dpo":
        data = [
            {"prompt": chat(r["prompt"], "user")}
            | {side: chat(r[side], "assistant") for side in ("chosen", "rejected")}
            for r in rows
        ]
        config = trl.DPOConfig(**given, max_length=1024, precompute_ref_log_probs=True)
        trainer = trl.DPOTrainer(args=config, train_dataset=Dataset.from_list(data), **common)
    else:
        data = [{"prompt": chat(r["question"], "user")} for r in rows]
        of_rollout = {
            "per_device_train_batch_size": PROMPTS * GROUP,
            "num_generations": GROUP,
            "max_completion_length": NEW,
        }
        config = trl.GRPOConfig(**given | of_rollout, beta=0.02, loss_type="dapo", temperature=1.0)
        trainer = trl.GRPOTrainer(
            args=config, train_dataset=Dataset.from_list(data), reward_funcs=even_tokens, **common
        )
    trainer.train()
    print(json.dumps([b - a for a, b in zip(clock.marks, clock.marks[1:], strict=False)]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), *map(int, sys.argv[5:6]))
