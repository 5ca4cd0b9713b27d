"""How good is the doctor's estimate of time? Real steps on SmolLM2-135M beside what it says of the config.

    python -m benchmarks.step_times               about six minutes on two CPU cores
    python -m benchmarks.step_times sft grpo      only some of them

Each case is foretold first, then run for a few steps; the first of them is left out. An answer of GRPO ends when it
likes: its length is told, and 24 tokens are few enough for most answers to reach them.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path

import posttrain  # noqa: F401  (sets OMP_WAIT_POLICY before torch is imported)

import torch  # isort: skip

from benchmarks.speed import made_rows
from loops import dpo, grpo, sft
from posttrain.config import load
from posttrain.errors import clear_exit
from posttrain.run import forecast

LOOPS = {"sft": sft, "dpo": dpo, "grpo": grpo}
STEPS = 4
LORA = {"model.adapter": "lora", "training.learning_rate": 1e-4}
CASES = {
    "sft": ("sft", LORA | {"training.batch_size": 8, "training.micro_batch_size": 4}),
    "sft, all weights": (
        "sft",
        {"training.batch_size": 8, "training.micro_batch_size": 4, "training.learning_rate": 1e-5},
    ),
    "dpo": ("dpo", LORA | {"training.batch_size": 4, "training.micro_batch_size": 2, "dpo.precompute": False}),
    "grpo": (
        "grpo",
        LORA
        | {"training.micro_batch_size": 8, "grpo.prompts_per_step": 2, "grpo.group_size": 8, "grpo.max_new_tokens": 24}
        | {"grpo.kl_coef": 0.01, "preflight.dead_groups": False},
    ),
}


def rows_of(method: str) -> list[dict]:
    rows = made_rows(80)
    if method == "sft":
        return rows
    if method == "grpo":
        return [{"prompt": r["question"], "answer": r["answer"].rsplit("#### ", 1)[1]} for r in rows]
    wrong = [r["answer"].rsplit("####", 1)[0] + "#### -1" for r in rows]
    return [{"prompt": r["question"], "chosen": r["answer"], "rejected": w} for r, w in zip(rows, wrong, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--dtype", default="auto", help="model.dtype")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| step | foretold | measured (range) | foretold / measured | parts |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch, clear_exit():
        for name in options.what or CASES:
            method, changes = CASES[name]
            data = Path(scratch, f"{method}.jsonl")
            data.write_text("".join(json.dumps(row) + "\n" for row in rows_of(method)))
            fixed = {"model.name": "smollm2", "model.dtype": options.dtype, "data.name": str(data), "output.samples": 0}
            fixed |= {"training.max_steps": STEPS, "output.dir": f"{scratch}/run", "output.overwrite": True}
            config = load(None, fixed | {"training.cpu_threads": options.threads} | changes, method=method)
            told = forecast.foretell(config, forecast.Here.of(config))
            metrics = LOOPS[method].train(config).metrics
            seconds = [b["seconds"] - a["seconds"] for a, b in itertools.pairwise(metrics)]
            middle = statistics.median(seconds)
            parts = ", ".join(f"{part} {value:.2f}" for part, value in told.parts.items())
            if "completion_length" in metrics[-1]:
                mean = statistics.mean(row["completion_length"] for row in metrics[1:])
                parts += f"; answers had {mean:.1f} tokens"
            print(
                f"| {name} | {told.seconds:.2f} s | {middle:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}) | "
                f"{told.seconds / middle:.2f} | {parts} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
