"""The sampler beside generate(num_return_sequences=8): tokens that count per second, temperature 1, alternating rounds.

    python -m benchmarks.sampler              about a minute on two CPU cores
    python -m benchmarks.sampler --smollm2    and SmolLM2-135M, in float32 and in bf16: three minutes more
    python -m benchmarks.sampler --rows       how many rows a step wants, and what torch.compile would give

What is saved: a group's prompt is read once, an answer that has ended leaves the batch, a token is written into the
cache without copying it. Where no answer ends early and prompts are short, what is left is the model's own work.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import posttrain  # noqa: F401  (sets OMP_WAIT_POLICY before torch is imported)

import torch  # isort: skip

from benchmarks.five_million import five_million
from posttrain import models
from posttrain.errors import clear_exit
from posttrain.rollouts.sampling import draw_uniforms, sample
from posttrain.tiny import data as tiny_data
from posttrain.tokens import template

GROUP, ROUNDS = 8, 7


def prompts_of(tokenizer, count: int, times: int = 1) -> list[list[int]]:
    """times: how often each question stands in its prompt."""
    asked = [" ".join([row["prompt"]] * times) for row in tiny_data.rows("tiny-math")[:count]]
    return [template.prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in asked]


def ours(model, tokenizer, ids: list[list[int]], new: int, group: int = GROUP) -> float:
    """Tokens per second of one rollout."""
    uniforms = draw_uniforms(len(ids) * group, new, seed=0, step=0)
    given = {"stop_ids": template.stop_ids(tokenizer), "pad_id": tokenizer.pad_token_id, "uniforms": uniforms}
    started = time.perf_counter()
    out = sample(model, ids, group_size=group, max_new_tokens=new, **given)
    return sum(map(len, out.completion_ids)) / (time.perf_counter() - started)


def theirs(model, tokenizer, ids: list[list[int]], new: int) -> float:
    tokenizer.padding_side, stops = "left", template.stop_ids(tokenizer)
    padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    started = time.perf_counter()
    drawn = model.generate(
        **padded, max_new_tokens=new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=GROUP,
        eos_token_id=stops, pad_token_id=tokenizer.pad_token_id,
    )[:, padded["input_ids"].shape[1] :]  # fmt: skip
    spent = time.perf_counter() - started
    ended = torch.isin(drawn, torch.tensor(stops))
    return int(torch.where(ended.any(1), ended.int().argmax(1) + 1, drawn.shape[1]).sum()) / spent


@torch.no_grad()
def beside_generate(
    label: str, name: str, prompts: int, times: int, new: int, threads: int, dtype=torch.float32
) -> None:
    torch.set_num_threads(threads)
    model, tokenizer, _ = models.load(name)
    model.eval().to(dtype)
    ids = prompts_of(tokenizer, prompts, times)
    pairs = [(ours(model, tokenizer, ids, new), theirs(model, tokenizer, ids, new)) for _ in range(ROUNDS)][1:]
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(x / y for x, y in pairs)
    longest = max(map(len, ids))
    print(f"  {label}, prompts of up to {longest}: {a:,.0f} against {b:,.0f} tokens/s: {a / b:.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)  # fmt: skip


@torch.no_grad()
def rows_of_a_step(name: str) -> None:
    """Tokens per second by the rows sampled at once; with torch.compile after it has compiled (once, timed)."""
    torch.set_num_threads(2)
    for way in ("float32", "bfloat16", "float32, compiled"):
        model, tokenizer, _ = models.load(name)
        model.eval().to(torch.bfloat16 if way == "bfloat16" else torch.float32)
        ids, spent = prompts_of(tokenizer, 4), ""
        if way.endswith("compiled"):
            model.forward = torch.compile(model.forward, dynamic=True)
            started = time.perf_counter()
            ours(model, tokenizer, ids, 4, 2)
            spent = f" (compiled in {time.perf_counter() - started:.0f} s)"
        found = {}
        for group in (2, 8, 32):
            speeds = [ours(model, tokenizer, ids, 96, group) for _ in range(4)][1:]
            found[4 * group] = statistics.median(speeds)
        print(f"  {way}{spent}: " + ", ".join(f"{rows} rows {speed:,.0f}" for rows, speed in found.items()), flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", action="store_true")
    parser.add_argument("--rows", action="store_true")
    options = parser.parse_args(arguments)
    with clear_exit(), tempfile.TemporaryDirectory() as scratch:
        large = five_million(Path(scratch) / "model")
        print("sampler against generate(num_return_sequences=8): median and range of the ratio")
        beside_generate("embedded (tiny-sft), 16 prompts x 8, 28 new tokens", "tiny-sft", 16, 1, 28, 1)
        beside_generate("5M random weights, 4 x 8, 96 new", large, 4, 1, 96, 2)
        beside_generate("5M random weights, 4 x 8, 96 new", large, 4, 10, 96, 2)
        if options.smollm2:
            for dtype in (torch.float32, torch.bfloat16):
                label = f"SmolLM2-135M in {str(dtype).removeprefix('torch.')}, 4 x 8, 48 new"
                beside_generate(label, "smollm2", 4, 1, 48, 2, dtype)
        if options.rows:
            print("5M random weights, 96 new tokens: tokens per second by rows")
            rows_of_a_step(large)


if __name__ == "__main__":
    main()
