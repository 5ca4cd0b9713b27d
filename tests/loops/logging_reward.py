"""A reward function that logs, and run by torchrun (or plain python) from test_reward_functions.py a GRPO run of it.

Answers and rewards are those of one process, so all that is logged has to be, too."""

import asyncio
import sys

from loops import grpo
from posttrain import ROOT
from posttrain.config import load
from posttrain.errors import clear_exit

ROWS = [{"prompt": f"Question {i}?" + " Hm." * (i % 3), "number": i} for i in range(1, 8)]
SEEN = []  # of the trainer's state


def even_tokens(completion_ids, number, trainer_state, log_metric, log_extra):
    SEEN.append(
        (trainer_state.global_step, trainer_state.max_steps, trainer_state.epoch, trainer_state.num_train_epochs)
    )
    for each in number:
        log_metric("number", each)
    if 3 in number:  # on one process at most
        log_metric("threes", 3.0)
        log_extra("first", [ids[0] for ids in completion_ids])
    log_extra("number", number)
    return [sum(t % 2 == 0 for t in ids) / len(ids) for ids in completion_ids]


async def patient(completions, **columns):
    await asyncio.sleep(0)
    columns["log_metric"]("patience", 1)
    return [0.0 if number % 2 else None for number in columns["number"]]


def train(model: str, out: str, **overrides):
    fixed = {
        "model.name": model, "output.dir": out, "output.samples": 0, "training.micro_batch_size": 4, "training.learning_rate": 1e-3,
        "training.max_steps": 6, "training.warmup_steps": 0, "training.eval_every": 3, "data.validation_split": 0.2,
        "grpo.prompts_per_step": 3, "grpo.group_size": 4, "grpo.max_new_tokens": 6, "grpo.minibatches": 2,
    }  # fmt: skip
    config = load(ROOT / "configs/grpo_tiny.yaml", fixed | {k.replace("__", "."): v for k, v in overrides.items()})
    return grpo.train(config, rows=ROWS, reward=[even_tokens, patient])


if __name__ == "__main__":
    with clear_exit():
        train(*sys.argv[1:])
