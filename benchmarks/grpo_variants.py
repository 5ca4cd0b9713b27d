"""Every variant of GRPO on the same task from the same start: what it did, over three seeds.

    python -m benchmarks.grpo_variants --run outputs/variants           # 12 x 3 runs, two at a time: half an hour
    python -m benchmarks.grpo_variants --run outputs/variants gspo      # these only; what is there already is kept
    python -m benchmarks.grpo_variants outputs/variants                 # -> the table, and benchmarks/expected/*.json

Each run samples 60 rollouts of 16 prompts x 8 answers (DAPO more: what it throws away is counted; on-policy
distillation one answer to each prompt) and starts at tiny-dpo. `right`: share of greedy answers that are right, on the
400 held-out problems. `seconds` are those that the processor worked, with one thread; a machine on which other things
run needs more by the clock.
"""

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path

from benchmarks.expected import SEEDS, band_of, read, tenths
from posttrain import ROOT
from posttrain.errors import UserError, clear_exit

TWO = {"grpo.minibatches": 2, "training.max_steps": 120}
RUNS: dict[str, tuple[str, dict]] = {
    "grpo": ("grpo_tiny", {}),
    "dr_grpo": ("variants/dr_grpo_tiny", {}),
    "rloo": ("variants/rloo_tiny", {}),
    "max_rl": ("variants/max_rl_tiny", {}),
    "reinforce_pp": ("variants/reinforce_pp_tiny", {}),
    "grpo, 2 minibatches": ("grpo_tiny", TWO),
    "dapo": ("variants/dapo_tiny", {}),
    "dapo, clip alone": ("variants/dapo_tiny", {"grpo.dynamic_sampling": False, "grpo.overlong_cache": None}),
    "gspo": ("variants/gspo_tiny", {}),
    "cispo": ("variants/cispo_tiny", {}),
    "grpo, 2 prompts": ("grpo_tiny", {"grpo.prompts_per_step": 2}),  # as many answers as the next
    "on_policy_distillation": ("variants/on_policy_distillation_tiny", {}),
}
BANDS = ["reward", "teacher_kl", "watched/answer", "dead_groups", "completion_length", "kl", "resamples"]


def one(name: str, seed: int, out: Path) -> None:
    """Train, ask the held-out problems, and keep what is to be told in out/ends.json."""
    from loops import grpo
    from posttrain.config import load
    from posttrain.config.suites import Accuracy as Options
    from posttrain.evaluation.accuracy import Accuracy
    from posttrain.evaluation.subjects import Subject

    file, changes = RUNS[name]
    fixed = {"output.dir": str(out), "output.overwrite": True, "output.samples": 0, "training.seed": seed}
    config = load(ROOT / f"configs/{file}.yaml", fixed | changes)
    began = time.process_time()
    result = grpo.train(config)
    seconds = time.process_time() - began
    subject = Subject("the policy", result.model, result.tokenizer, result.model.dtype, 128, 0)
    right = Accuracy(Options(data="tiny-math", max_new_tokens=config.grpo.max_new_tokens))(subject).scores[0]
    rows = result.metrics
    last = rows[-len(rows) // 10 :]
    ends = {
        "right": right.value, "n": right.n, "seconds": seconds, "steps": len(rows),
        "answers": sum(1 + row.get("resamples", 0) for row in rows) / len(rows) * 60 * config.grpo.prompts_per_step * config.grpo.group_size,
        **{key: sum(row[key] for row in last) / len(last) for key in ("kl", "completion_length", "dead_groups", "clip_fraction") if key in last[0]},
    }  # fmt: skip
    (out / "ends.json").write_text(json.dumps(ends))


def run(folder: Path, names: list[str], at_once: int = 2) -> None:
    """Forks of this process, which has imported everything."""
    import posttrain.evaluation.accuracy  # noqa: F401

    waiting = [(name, seed) for name in names or RUNS for seed in SEEDS]
    waiting = [(name, seed) for name, seed in waiting if not (place(folder, name, seed) / "ends.json").is_file()]
    running: dict[int, tuple[str, int]] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            name, seed = waiting.pop(0)
            out = place(folder, name, seed)
            out.parent.mkdir(parents=True, exist_ok=True)
            pid = os.fork()
            if pid == 0:
                try:
                    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (the progress bars of two runs)
                    one(name, seed, out)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc(file=sys.stdout)
                    sys.stdout.flush()
                    os._exit(1)
            running[pid] = (name, seed)
        pid, status = os.wait()
        name, seed = running.pop(pid)
        print(f"{name}, seed {seed}: {'done' if status == 0 else 'failed'}", flush=True)


def place(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"


def tell(folder: Path) -> None:
    print(
        "| variant | right, held out | KL | tokens of an answer | dead groups | clipped | answers sampled | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, (file, changes) in RUNS.items():
        folders = [place(folder, name, seed) for seed in SEEDS]
        folders = [one for one in folders if (one / "ends.json").is_file()]
        if not folders or (not changes and len(folders) < len(SEEDS)):
            raise UserError(f"{name}: {len(folders)} of {len(SEEDS)} runs are finished in {folder}: --run {folder}")
        ends = [json.loads((one / "ends.json").read_text()) for one in folders]
        cells = [span([e[key] for e in ends if key in e], how) for key, how in COLUMNS]
        seeds = "" if len(ends) == len(SEEDS) else f" ({len(ends)} seed{'s' * (len(ends) > 1)})"
        print(f"| {name}{seeds} | {' | '.join(cells)} |")
        if not changes and name != "grpo":
            band(name, file, [read(one) for one in folders], [e["right"] for e in ends])


COLUMNS = [("right", "{:.2f}"), ("kl", "{:.2f}"), ("completion_length", "{:.1f}"), ("dead_groups", "{:.2f}"), ("clip_fraction", "{:.3f}"), ("answers", "{:,.0f}"), ("seconds", "{:.0f}")]  # fmt: skip


def span(values: list[float], how: str) -> str:
    if not values:
        return "–"
    low, high = how.format(min(values)), how.format(max(values))
    return low if low == high else f"{low} … {high}"


def band(name: str, file: str, runs: list[list[dict]], right: list[float]) -> None:
    """benchmarks/expected/NAME_tiny.json, as expected.py writes them; and the held-out right answers of each seed."""
    bands = {}
    for metric in (name for name in BANDS if name in runs[0][0]):
        bands[metric] = band_of([tenths(rows, metric) for rows in runs])
    out = {"config": f"configs/{file}.yaml", "seeds": list(SEEDS), "steps": len(runs[0]), "right": right, "metrics": bands}  # fmt: skip
    (ROOT / f"benchmarks/expected/{Path(file).name}.json").write_text(json.dumps(out, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs are, or go")
    parser.add_argument("names", nargs="*", metavar="VARIANT", help=f"--run only these: {'; '.join(RUNS)}")
    parser.add_argument("--run", action="store_true", help="run them first")
    options = parser.parse_args()
    with clear_exit():
        for name in options.names:
            if name not in RUNS:
                raise UserError(f"'{name}' is none of {'; '.join(RUNS)}")
        if options.run:
            run(options.folder, options.names)
        if not options.names:
            tell(options.folder)


if __name__ == "__main__":
    main()
