"""What it saves to read a prompt once (training.share_prompts): forward and backward passes, with and without, in turn.

    python -m benchmarks.shared_prompts              two minutes on two CPU cores, random weights
    python -m benchmarks.shared_prompts --smollm2    SmolLM2-135M with LoRA instead, four minutes
    python -m benchmarks.shared_prompts --smollm2 --only once       the 8 short pairs alone, and the memory they take

Ratios within one run are what counts. Lengths are drawn once: prompts and answers vary by a third around their means.
"""

import argparse
import random
import statistics
import time

import posttrain  # noqa: F401  (sets OMP_WAIT_POLICY before torch is imported)

import torch  # isort: skip
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.peak import peak_rss
from posttrain import models
from posttrain.config import load
from posttrain.run.training import Run
from posttrain.tokens.batch import Batch, Example, collate
from posttrain.tokens.shared import Sharing

ROUNDS = 4
PAIRS = "DPO, 8 short pairs (a name)"
CASES = {  # prompts, answers to each, tokens of a prompt, of an answer
    "GRPO, 2 groups of 8": (2, 8, 80, 60),
    "GRPO, 2 groups of 16, long prompts": (2, 16, 300, 100),
    "DPO, 8 pairs as in HH": (8, 2, 150, 60),
    PAIRS: (8, 2, 40, 25),
}


def batch_of(prompts: int, answers: int, of_prompt: int, of_answer: int, vocabulary: int) -> tuple[Batch, Sharing]:
    rng, sharing = random.Random(0), Sharing(True)

    def ids(mean: int) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(rng.randint(mean * 2 // 3, mean * 4 // 3))]

    asked = [ids(of_prompt) for _ in range(prompts)]
    sharing.on = True
    return collate([Example.of(p, ids(of_answer)) for p in asked for _ in range(answers)], 0, sharing), sharing


def seconds(policy: models.CompletionLogps, batch: Batch, run: Run | None) -> float:
    started = time.perf_counter()
    if run is None:
        logps, _ = policy(batch)
    else:
        with run.accelerator.autocast():
            logps, _ = policy(batch)
    (-logps.sum()).backward()
    policy.zero_grad()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", action="store_true", help="a real model, with LoRA")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="auto", help="model.dtype of SmolLM2")
    parser.add_argument("--attention", default="auto", help="model.attn_implementation of SmolLM2")
    parser.add_argument(
        "--only", choices=("apart", "once"), help="8 short pairs, one way alone: seconds and peak memory"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    run = None
    if options.smollm2:
        keys = {"model.name": "smollm2", "model.adapter": "lora", "output.dir": "outputs/benchmark"}
        keys |= {"model.dtype": options.dtype, "model.attn_implementation": options.attention}
        run = Run(load(None, keys | {"output.overwrite": True}, method="dpo"))
        model, _, _ = models.load_policy(run.config.model, run)
        vocabulary = 49_152
    else:
        vocabulary = 4096
        shape = dict(hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=4)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **shape))
    torch.set_num_threads(options.threads)
    policy = models.CompletionLogps(model.train())
    policy.keep_bytes = 512 * 2**20
    assert policy.share_prompts() is None
    if options.only:
        batch, _ = batch_of(*CASES[PAIRS], vocabulary)
        asked = batch if options.only == "once" else batch.apart()
        took = [seconds(policy, asked, run) for _ in range(ROUNDS + 1)][1:]
        spread = f"{statistics.median(took):.2f} s ({min(took):.2f} to {max(took):.2f})"
        print(f"{PAIRS}, {options.only}: {spread}, peak of the process {peak_rss():,.0f} MB")
        return
    print("| rows | tokens apart, once | seconds apart | once | ratio |\n|---|---|---|---|---|")
    for name, shape in CASES.items():
        if options.smollm2 and shape[2] > 100:
            continue  # 16,000 tokens of it are 20 GB
        batch, sharing = batch_of(*shape, vocabulary)
        found: dict[str, list[float]] = {"apart": [], "once": []}
        for _ in range(ROUNDS):
            found["apart"].append(seconds(policy, batch.apart(), run))
            found["once"].append(seconds(policy, batch, run))
        apart, once = (statistics.median(found[way][1:]) for way in ("apart", "once"))
        tokens = f"{sharing.rows:,}, {sharing.read:,}"
        print(f"| {name} | {tokens} | {apart:.3f} | {once:.3f} | {apart / once:.2f} |", flush=True)


if __name__ == "__main__":
    main()
