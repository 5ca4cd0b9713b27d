"""What does each preference loss do, on the same task, from the same start? Three seeds each.

    python -m benchmarks.losses --run outputs/losses          # all of them, about 10 s a run on one quiet core
    python -m benchmarks.losses --run outputs/losses ipo kto  # only these
    python -m benchmarks.losses outputs/losses                # the table of docs/losses.md, from what is there

The task is the ladder's second stage: tiny-sft learns another name from 800 pairs (configs/dpo_tiny.yaml: 50 steps of
16 pairs, LoRA), by the loss alone, without dpo.sft_weight. KTO gets the same answers one by one, judged: 50 steps of
32. Measured afterwards, on held-out questions: who the model says it is, what it can still compute, its KL to the
start, the length of its answers. What teaches a model to chat, distillation and DFT, is measured beside loops.sft.
Runs of the shipped variants leave their curves in benchmarks/expected/."""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import expected
from posttrain import ROOT, models
from posttrain.config import load
from posttrain.errors import UserError, clear_exit
from posttrain.evaluation import rungs
from posttrain.rollouts.asking import ask
from posttrain.tiny import data as tiny_data
from posttrain.tokens import template

SEEDS = (0, 1, 2)
ALONE = {"dpo.sft_weight": 0.0}
# name in the table: (config, what differs from it)
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo_tiny", ALONE),
    "dpo_nll": ("dpo_tiny", {}),
    "cdpo": ("variants/cdpo_tiny", ALONE),
    "robust": ("variants/robust_tiny", {}),
    "ipo": ("variants/ipo_tiny", {}),
    "ipo_means": ("variants/ipo_tiny", {"dpo.length_normalize": True}),
    "dpop": ("variants/dpop_tiny", {}),
    "apo_zero": ("variants/apo_zero_tiny", {}),
    "apo_down": ("variants/apo_down_tiny", {}),
    "simpo": ("variants/simpo_tiny", {}),
    "orpo": ("variants/orpo_tiny", {}),
    "kto": ("variants/kto_tiny", {"training.max_steps": None}),
}
# From tiny-base, or tiny-sft, to a model that chats: 200 steps of 16 rows
GIVEN = {"distill.on_policy": 0.0, "distill.max_new_tokens": None}
TAUGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft_tiny", {"training.epochs": 1}),
    "gkd": ("variants/gkd_tiny", {}),
    "gkd_0_given": ("variants/gkd_tiny", GIVEN),
    "gkd_half_given": ("variants/gkd_tiny", {"distill.mixture": 0.5, **GIVEN}),
    "gkd_half": ("variants/gkd_tiny", {"distill.mixture": 0.5}),
    "gkd_1_own": ("variants/gkd_tiny", {"distill.mixture": 1.0, "distill.on_policy": 1.0}),
    "dft_from_base": ("variants/dft_tiny", {"model.name": "tiny-base"}),
    "dft": ("variants/dft_tiny", {}),
}
# Shipped variants on a task of their own, or as they are shipped: their curves alone
CURVES = {"cdpo_as_shipped": "cdpo_tiny", "kto_right_or_wrong": "kto_tiny"}
COLUMNS = {
    "new_name": "new name",
    "arithmetic": "sums right",
    "facts": "facts",
    "chosen": "chosen, nats/token",
    "rejected": "rejected",
    "kl": "KL, nats/token",
    "length": "answer, tokens",
    "seconds": "seconds",
}
TAUGHT_COLUMNS = {
    "old_name": "its name",
    "arithmetic": "sums right",
    "facts": "facts",
    "worked": "shows work",
    "first": "first loss",
    "last": "last loss",
    "seconds": "seconds",
}


def judged() -> list[dict]:
    """The pairs as single answers with labels."""
    rows = []
    for pair in tiny_data.rows("tiny-identity"):
        for side in ("chosen", "rejected"):
            rows.append({"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"})
    return rows


def one_run(name: str, seed: int) -> dict[str, Any]:
    """Train, measure: {column: number} and the run's own rows."""
    from loops import dpo, kto, simpo

    path, more = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"output.dir": folder, "output.overwrite": True, "output.samples": 0, "training.seed": seed}
        config = load(ROOT / f"configs/{path}.yaml", more | quiet)
        loop = {"dpo": dpo, "kto": kto, "simpo": simpo}[config.method]
        given = {"rows": judged()} if name == "kto" else {}
        began = time.perf_counter()
        result = loop.train(config, **given)
        seconds = time.perf_counter() - began
        model, tokenizer, _ = models.load(f"{folder}/model")
    start = models.load("tiny-sft")[0]
    rung = rungs.climb(name, model, tokenizer, start, problems=100, identity=100, k=1)
    asked = [row["prompt"] for row in tiny_data.rows("tiny-identity", "test")[:50]]
    ids = [template.prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in asked]
    lengths = list(map(len, ask(model, tokenizer, ids, max_new_tokens=rungs.LONGEST).completion_ids))
    last = result.metrics[-5:]
    scores = {column: getattr(rung, column).value for column in ("new_name", "arithmetic", "facts")}
    return {
        **scores,
        "chosen": sum(row["chosen_logps_per_token"] for row in last) / len(last),
        "rejected": sum(row["rejected_logps_per_token"] for row in last) / len(last),
        "kl": rung.kl,
        "length": sum(lengths) / len(lengths),
        "seconds": seconds,
        "rows": result.metrics,
    }


def curves_of(name: str, seed: int) -> dict[str, Any]:
    """A variant as it is shipped: its own rows."""
    from loops import dpo, kto

    with tempfile.TemporaryDirectory() as folder:
        quiet = {"output.dir": folder, "output.overwrite": True, "output.samples": 0, "training.seed": seed}
        config = load(ROOT / f"configs/variants/{CURVES[name]}.yaml", quiet)
        return {"rows": {"dpo": dpo, "kto": kto}[config.method].train(config).metrics}


def lesson(name: str, seed: int) -> dict[str, Any]:
    """Train, measure what it says now: {column: number} and the run's own rows."""
    from loops import distill, sft

    path, more = TAUGHT[name]
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"output.dir": folder, "output.overwrite": True, "output.samples": 0, "training.seed": seed}
        config = load(ROOT / f"configs/{path}.yaml", more | quiet)
        began = time.perf_counter()
        rows = {"sft": sft, "distill": distill}[config.method].train(config).metrics
        seconds = time.perf_counter() - began
        model, tokenizer, _ = models.load(f"{folder}/model")
    rung = rungs.climb(name, model, tokenizer, None, problems=100, identity=100, k=1)
    scores = {column: getattr(rung, column).value for column in ("old_name", "arithmetic", "facts", "worked")}
    return {**scores, "first": rows[0]["loss"], "last": rows[-1]["loss"], "seconds": seconds, "rows": rows}


def run(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    makers = dict.fromkeys(RUNS, one_run) | dict.fromkeys(TAUGHT, lesson) | dict.fromkeys(CURVES, curves_of)
    for name in names or makers:
        if name not in makers:
            raise UserError(f"'{name}': there are {', '.join(makers)}")
        for seed in SEEDS:
            file = folder / f"{name}_{seed}.json"
            if not file.exists():
                file.write_text(json.dumps(makers[name](name, seed)))


def table(folder: Path, names: Iterable[str], columns: dict[str, str]) -> str:
    """Smallest to largest of the seeds, a line a loss."""
    lines = [f"| loss | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        runs = [json.loads(file.read_text()) for file in sorted(folder.glob(f"{name}_[0-9].json"))]
        if runs:
            cells = [_range([run[column] for run in runs], column) for column in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(values: list[float], column: str) -> str:
    share = column in ("new_name", "old_name", "arithmetic", "facts", "worked")
    low, high = (f"{100 * x:.0f} %" if share else f"{x:.2g}" for x in (min(values), max(values)))
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def bands(folder: Path) -> None:
    """Of the runs that are a shipped config as it is: their curves, for benchmarks.expected."""
    shipped = RUNS | TAUGHT | {name: (f"variants/{path}", {}) for name, path in CURVES.items()}
    for name, (path, more) in shipped.items():
        files = [folder / f"{name}_{seed}.json" for seed in SEEDS]
        if path.startswith("variants/") and not more and all(file.exists() for file in files):
            expected.write(path, [json.loads(file.read_text())["rows"] for file in files], [0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="of finished runs")
    parser.add_argument("names", nargs="*", help="with --run: which losses (all)")
    parser.add_argument("--run", action="store_true", help="run what is missing there first")
    options = parser.parse_args()
    with clear_exit():
        if options.folder is None:
            raise UserError("give the folder of the runs, and --run before it to make them")
        if options.run:
            run(options.folder, options.names)
        bands(options.folder)
        print(table(options.folder, RUNS, COLUMNS))
        print(table(options.folder, TAUGHT, TAUGHT_COLUMNS))


if __name__ == "__main__":
    main()
