"""SmolLM2-135M with LoRA on a CPU: float32 against bfloat16, one thread against two, small micro-batches against large.

python -m benchmarks.smollm2        (five minutes; figures and hardware in benchmarks/RESULTS.md)
"""

import time

import torch

from posttrain import models
from posttrain.config import load
from posttrain.rollouts.sampling import draw_uniforms, sample
from posttrain.run.training import Run
from posttrain.tokens.batch import Example, collate

LENGTH, LEARNED, NEW = 96, 32, 24  # tokens of a row, of them the answer; tokens sampled to a prompt


def rows(count: int) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 49_000, (count, LENGTH), generator=generator).tolist()
    return [Example.of(row[:-LEARNED], row[-LEARNED:]) for row in ids]


def trained(run: Run, policy: models.CompletionLogps, count: int) -> float:
    """Tokens per second of a forward and backward pass over `count` rows, the second time."""
    batch, seconds = collate(rows(count), 0), 0.0
    for _ in range(2):
        started = time.perf_counter()
        with run.accelerator.autocast():
            logps, _ = policy(batch)
        (-logps.sum()).backward()
        seconds = time.perf_counter() - started
    return count * LENGTH / seconds


def sampled(run: Run, model, count: int) -> float:
    prompts, uniforms = [row.input_ids[:60] for row in rows(count)], draw_uniforms(count, NEW, seed=0, step=0)
    started = time.perf_counter()
    with run.accelerator.autocast():
        rollout = sample(model, prompts, max_new_tokens=NEW, stop_ids=[2], pad_id=2, uniforms=uniforms)
    return sum(map(len, rollout.completion_ids)) / (time.perf_counter() - started)


def main() -> None:
    print("| compute type | threads | train, 4 rows | 8 rows | 16 rows | sample, 16 answers | 64 answers |")
    print("|---|---|---|---|---|---|---|")
    for dtype in ("float32", "bfloat16"):
        keys = {"model.name": "smollm2", "model.dtype": dtype, "model.adapter": "lora", "training.device": "cpu"}
        run = Run(load(None, keys | {"output.dir": "outputs/benchmark", "output.overwrite": True}, method="sft"))
        model, _, _ = models.load_policy(run.config.model, run)
        policy = models.CompletionLogps(model.train())
        for threads in (2, 1):
            torch.set_num_threads(threads)
            numbers = [trained(run, policy, n) for n in (4, 8, 16)] + [sampled(run, model, n) for n in (16, 64)]
            print(f"| {dtype} | {threads} | " + " | ".join(f"{n:.0f}" for n in numbers) + " |", flush=True)


if __name__ == "__main__":
    main()
