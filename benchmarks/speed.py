"""Speed and memory beside what one would otherwise write. Ratios within one run are what counts; machines are noisy.

    python -m benchmarks.speed                         everything, about five minutes on two CPU cores
    python -m benchmarks.speed step memory sampler     only some of it
    python -m benchmarks.speed step --data rows.jsonl  on rows of one's own (question + answer, as GSM8K ships them)

step      an optimiser step of loops.sft (512 and 49,152 vocabulary entries) and loops.dpo against a bare forward +
          backward + AdamW on the same tokens, and of loops.grpo; with --with-trl PYTHON all against TRL's trainers
memory    peak memory of one SFT step with 49,152 vocabulary entries against full logits + cross_entropy
sampler   benchmarks.sampler: tokens per second beside generate()
encoding  benchmarks.encoding: rows of text to token ids
packing   an SFT step with training.packing against the same rows padded (sorted by length within the step, as always)
qlora     a LoRA step on a base stored in 4 bits against float32, and the bytes of the base
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import posttrain  # noqa: F401  (sets OMP_WAIT_POLICY before torch is imported)

import torch  # isort: skip
from transformers import AutoTokenizer, LlamaForCausalLM

from benchmarks import encoding, sampler
from benchmarks.five_million import five_million
from benchmarks.peak import peak_rss
from loops import dpo, grpo, sft
from posttrain import models
from posttrain.config import load
from posttrain.data.files import read_file
from posttrain.data.rows import load_rows
from posttrain.errors import clear_exit
from posttrain.run.steps import epoch_order
from posttrain.run.training import Result
from posttrain.tiny import data as tiny_data
from posttrain.tokens.batch import collate
from posttrain.tokens.examples import pairs, sft_examples

STEPS, WARM, ROUNDS = 8, 2, 3


def made_rows(count: int = 200) -> list[dict]:
    """Rows of GSM8K's length: three or four problems in one question, worked."""
    rng = random.Random(0)
    rows = []
    for _ in range(count):
        parts = [tiny_data.problem(rng, tiny_data.TWO_STEP) for _ in range(rng.randint(2, 5))]
        answer = "\n".join(" ".join(p["steps"]) for p in parts) + f"\n#### {parts[-1]['answer']}"
        rows.append({"question": " ".join(p["story"] for p in parts) + " " + parts[-1]["question"], "answer": answer})
    return rows


def bare(name: str, batches: list, chosen_and_rejected: bool) -> list[float]:
    """Seconds per step of the least that could be written: the model's own loss, backward, AdamW."""
    model = LlamaForCausalLM.from_pretrained(name, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    seconds = []
    for batch in batches:
        started = time.perf_counter()
        if chosen_and_rejected:
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            logps = torch.log_softmax(logits[:, :-1], -1).gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
            sums = torch.where(batch.active, logps, 0.0).sum(1)
            loss = -torch.nn.functional.logsigmoid(0.1 * (sums[: len(sums) // 2] - sums[len(sums) // 2 :])).mean()
        else:
            labels = torch.where(batch.completion_mask, batch.input_ids, -100)
            loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return seconds


def trl_of(python: str | None, method: str, name: str, rows: list[dict], scratch: str) -> list[float]:
    """Seconds per step of TRL's trainer on the same rows (benchmarks/with_trl.py); nothing without --with-trl."""
    if python is None:
        return []
    Path(scratch, "trl.json").write_text(json.dumps(rows))
    script = str(Path(__file__).with_name("with_trl.py"))
    command = [python, script, method, name, f"{scratch}/trl.json", str(STEPS)]
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stderr)
    return json.loads(out.stdout.splitlines()[-1])[WARM:]


def beside(label: str, ours: list[float], bare: list[float], trl: list[float], note: str = "") -> None:
    """Median and range of the seconds per step, and the ratios of the medians."""
    said = [f"{label}: {_spread(ours)} s a step"]
    for name, seconds in (("bare", bare), ("TRL", trl)):
        if seconds:
            said.append(f"{name} {_spread(seconds)}: {statistics.median(ours) / statistics.median(seconds):.2f} x")
    print(f"  {', '.join(said)}{note}", flush=True)


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"


def even_tokens(completion_ids: list[list[int]]) -> list[float]:
    """A reward that random weights can win, and lose."""
    return [sum(token % 2 == 0 for token in ids) / max(1, len(ids)) for ids in completion_ids]


def step(rows: list[dict], python: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        small, large = five_million(Path(scratch) / "model"), five_million(Path(scratch) / "large", 49_152)
        tokenizer = AutoTokenizer.from_pretrained(small)
        fixed = {
            "training.batch_size": 8, "training.micro_batch_size": 8, "training.max_steps": STEPS, "output.samples": 0,
            "output.overwrite": True, "training.cpu_threads": 2, "training.learning_rate": 1e-5,
        }  # fmt: skip
        preferences = [
            {"prompt": r["question"], "chosen": r["answer"], "rejected": r["answer"].rsplit("####", 1)[0] + "#### 0"}
            for r in rows
        ]
        preferences = [r for r in preferences if r["chosen"] != r["rejected"]]
        print(f"5M-parameter Llama, batch 8, 2 threads, {STEPS - WARM} timed steps x {ROUNDS} rounds, median (range)")
        cases = ((sft, "sft", rows, sft_examples, small), (sft, "sft", rows, sft_examples, large), (dpo, "dpo", preferences, pairs, small))  # fmt: skip
        for loop, method, data, encode, name in cases:
            more = {"model.adapter": "none", "dpo.precompute": True, "dpo.sft_weight": 0.0} if method == "dpo" else {}
            config = load(
                f"configs/{method}_tiny.yaml", fixed | more | {"model.name": name, "output.dir": f"{scratch}/{method}"}
            )
            torch.set_num_threads(2)
            items = encode(load_rows(config.data, method, data), tokenizer, 1024, config.data).items
            order = epoch_order(len(items), config.training.seed, 0)
            windows = [
                sorted((items[i] for i in order[k * 8 : k * 8 + 8]), key=len, reverse=True) for k in range(STEPS)
            ]
            rows_of = (lambda w: [p.chosen for p in w] + [p.rejected for p in w]) if method == "dpo" else list
            batches = [collate(rows_of(w), tokenizer.pad_token_id) for w in windows]
            ours, theirs, trl = [], [], []
            for _ in range(ROUNDS):  # alternating, so that a slow minute of the machine hits all
                ours += _steps(loop.train(config, rows=data))
                theirs += bare(name, batches, method == "dpo")[WARM:]
                trl += trl_of(python, method, name, data, scratch)
            tokens = sum(b.input_ids.numel() for b in batches[WARM:]) / (STEPS - WARM)
            share = sum(int(b.active.sum()) for b in batches) / sum(b.input_ids.numel() for b in batches)
            note = f"   ({tokens:.0f} tokens, {share:.0%} completion)"
            beside(f"{method}{', 49,152 entries' * (name == large)}", ours, theirs, trl, note)

        sizes = {"grpo.prompts_per_step": 4, "grpo.group_size": 8, "grpo.max_new_tokens": 64, "grpo.reward": "answer"}
        changes = {"training.batch_size": None, "training.micro_batch_size": 32, "output.dir": f"{scratch}/grpo"}
        config = load("configs/grpo_tiny.yaml", fixed | sizes | changes | {"model.name": small})
        asked = [{"prompt": r["question"]} for r in rows]
        ours, trl = [], []
        for _ in range(ROUNDS):
            ours += _steps(grpo.train(config, rows=asked, reward=even_tokens))
            trl += trl_of(python, "grpo", small, rows, scratch)
        beside("grpo, 4 prompts x 8 answers of up to 64 tokens, sampling included", ours, [], trl)


def _steps(result: Result) -> list[float]:
    """Seconds of each optimiser step after the first WARM."""
    marks = [m["seconds"] for m in result.metrics]
    return [b - a for a, b in zip(marks[WARM - 1 :], marks[WARM:], strict=False)]


def memory(rows: list[dict]) -> None:
    print("peak memory of a fresh process above its imports, one SFT step, 5M-parameter body, 49,152 entries, batch 8")
    with tempfile.TemporaryDirectory() as scratch:
        name = five_million(Path(scratch) / "model", 49_152)
        Path(scratch, "rows.json").write_text(json.dumps(rows[:8]))
        peaks = {}
        for way in ("full logits", "loops.sft"):
            out = subprocess.run(
                [sys.executable, "-m", "benchmarks.speed", "--one-step", way, name, scratch],
                capture_output=True,
                text=True,
            )
            if out.returncode:
                sys.exit(out.stderr)
            peaks[way] = float(out.stdout.splitlines()[-1])
            print(f"  {way}: {peaks[way]:.0f} MB")
        print(f"  ratio {peaks['loops.sft'] / peaks['full logits']:.2f}")


def one_step(way: str, name: str, scratch: str) -> None:
    rows = json.loads(Path(scratch, "rows.json").read_text())
    before = peak_rss()
    config = load(
        "configs/sft_tiny.yaml",
        {"model.name": name, "training.batch_size": 8, "training.micro_batch_size": 8, "training.max_steps": 1, "output.samples": 0,
         "output.dir": f"{scratch}/run", "output.overwrite": True, "training.cpu_threads": 2},
    )  # fmt: skip
    if way == "loops.sft":
        sft.train(config, rows=rows)
    else:
        tokenizer = AutoTokenizer.from_pretrained(name)
        items = sft_examples(load_rows(config.data, "sft", rows), tokenizer, 1024, config.data).items
        bare(name, [collate(items, tokenizer.pad_token_id)], False)
    print(peak_rss() - before)


def seconds_per_step(configs: dict[str, object], rows: list[dict]) -> dict[str, float]:
    """Median over alternating rounds, so that a slow minute of the machine hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(ROUNDS):
        for name, config in configs.items():
            seconds[name] += _steps(sft.train(config, rows=rows))
    return {name: statistics.median(values) for name, values in seconds.items()}


def packing(rows: list[dict]) -> None:
    """Lengths as chat data have them: half of the rows a short exchange, half a worked problem."""
    mixed = [r if i % 2 else {"question": "Who are you?", "answer": "A small model."} for i, r in enumerate(rows)]
    with tempfile.TemporaryDirectory() as scratch:
        fixed = {
            "model.name": five_million(Path(scratch) / "model"), "training.batch_size": 16, "training.max_steps": STEPS,
            "output.samples": 0, "output.overwrite": True, "training.cpu_threads": 2, "training.learning_rate": 1e-5, "data.max_length": 1024,
        }  # fmt: skip
        ways = {
            "padded, 16 at once": (16, False),
            "padded, 4 at once": (4, False),
            "packed, 1 row of 1,024 at once": (1, True),
        }
        configs = {
            way: load("configs/sft_tiny.yaml", fixed | {"training.micro_batch_size": size, "training.packing": packed,
                                                        "output.dir": f"{scratch}/{size}{packed}"})
            for way, (size, packed) in ways.items()
        }  # fmt: skip
        print("SFT step of 16 rows, half of them short, 5M-parameter Llama, 2 threads")
        found = seconds_per_step(configs, mixed)
        for way, value in found.items():
            print(
                f"  {way}: {value:.3f} s a step, {value / found['packed, 1 row of 1,024 at once']:.2f} x the packed one"
            )


def qlora(rows: list[dict]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        fixed = {
            "model.name": five_million(Path(scratch) / "model"), "model.adapter": "lora", "training.batch_size": 8, "training.max_steps": STEPS,
            "training.micro_batch_size": 8, "output.samples": 0, "output.overwrite": True, "training.cpu_threads": 2,
        }  # fmt: skip
        configs = {
            bits: load("configs/sft_tiny.yaml", fixed | {"model.quantization": bits, "output.dir": f"{scratch}/{bits}"})
            for bits in ("none", "8bit", "4bit")
        }
        print("LoRA step on a frozen base, 5M-parameter Llama, batch 8, 2 threads")
        found = seconds_per_step(configs, rows)
        for bits, value in found.items():
            base = models.load(fixed["model.name"], quantization=bits)[0]
            size = sum(p.numel() * p.element_size() for p in base.model.layers.parameters())
            print(f"  {bits}: {value:.3f} s a step ({value / found['none']:.2f} x), layers {size / 1e6:.1f} MB")


def main() -> None:
    if sys.argv[1:2] == ["--one-step"]:
        return one_step(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--data", type=Path, help="a .jsonl file with question and answer; default: made here")
    parser.add_argument("--with-trl", metavar="PYTHON", help="step: beside TRL's trainers, of the environment of this python (benchmarks/with_trl.py)")  # fmt: skip
    arguments = parser.parse_args()
    with clear_exit():
        rows = list(read_file(arguments.data))[:200] if arguments.data else made_rows()
        for name in arguments.what or PARTS:
            PARTS[name](rows, arguments.with_trl)


PARTS: dict[str, Callable[[list[dict], str | None], None]] = {
    "step": step,
    "memory": lambda rows, _: memory(rows),
    "packing": lambda rows, _: packing(rows),
    "qlora": lambda rows, _: qlora(rows),
    "sampler": lambda rows, _: sampler.main([]),
    "encoding": lambda rows, _: encoding.main([]),
}


if __name__ == "__main__":
    main()
