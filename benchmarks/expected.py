"""A run of a shipped tiny config, drawn over what other bases and seeds gave: does mine learn like theirs?

    python -m loops.sft --config configs/sft_tiny.yaml
    python -m benchmarks.expected outputs/sft_tiny        # writes expected.png there, and a verdict
    python -m benchmarks.expected --run outputs/expected  # 3 bases x 3 seeds, one and two threads: an hour or so

The band of a metric: the smallest and largest of all runs' means over each tenth of the run, widened each way by half
their distance (the next run is one more draw) and at least by a tenth of the metric's whole range. A run is *unlike
ours* where learning differs: where it starts or ends elsewhere, by more than a quarter of that range, or goes the other
way. Outside the band otherwise is told, too, and called what it is: noise.
"""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from posttrain import ROOT
from posttrain.config import load
from posttrain.errors import UserError, clear_exit
from posttrain.run.curves import legend

HERE = Path(__file__).resolve().parent
PARTS, BASES, SEEDS, WIDER, ELSEWHERE = 10, (0, 1, 2), (0, 1, 2), 0.1, 0.25
STARTS = {"sft": "base", "dpo": "sft", "reward": "sft", "ppo": "sft", "grpo": "dpo"}  # what each is trained from
METRICS = {
    "pretrain": ["loss", "grad_norm"],
    "sft": ["loss", "p_stop", "entropy"],
    "distill": ["loss", "divergence", "grad_norm"],
    "dpo": ["dpo_loss", "accuracy", "margin", "chosen_logps_per_token"],
    "simpo": ["loss", "accuracy", "margin", "chosen_logps_per_token"],
    "kto": ["loss", "accuracy", "z0", "chosen_logps_per_token"],
    "reward": ["loss", "accuracy", "margin"],
    "grpo": ["reward", "dead_groups", "kl", "completion_length"],
    "ppo": ["reward", "explained_variance", "kl", "clip_fraction"],
}


def read(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tenths(rows: list[dict], name: str) -> list[float]:
    """The mean of a metric over each tenth of a run.

    >>> tenths([{"loss": float(i)} for i in range(20)], "loss")[:3]
    [0.5, 2.5, 4.5]
    """
    values = [row[name] for row in rows if name in row]
    edges = [round(i * len(values) / PARTS) for i in range(PARTS + 1)]
    parts = [values[a:b] for a, b in itertools.pairwise(edges)]
    return [sum(part) / len(part) if part else math.nan for part in parts]


def band_of(curves: list[list[float]]) -> dict[str, list[float]]:
    """The tenths of several runs -> the smallest and largest of each."""
    columns = list(zip(*curves, strict=True))
    return {"low": [round(min(c), 4) for c in columns], "high": [round(max(c), 4) for c in columns]}


def widened(band: dict[str, list[float]], share: float) -> tuple[list[float], list[float]]:
    """(low, high) of each tenth, with room for one more draw: at least `share` of the metric's whole range."""
    least = share * (max(band["high"]) - min(band["low"]))
    room = [max(least, (high - low) / 2) for low, high in zip(band["low"], band["high"], strict=True)]
    low = [x - r for x, r in zip(band["low"], room, strict=True)]
    return low, [x + r for x, r in zip(band["high"], room, strict=True)]


def unlike(mine: list[float], band: dict[str, list[float]]) -> list[str]:
    """Where learning differs: the start, the end, the direction. Nothing of the noise."""
    low, high = widened(band, ELSEWHERE)
    found = [
        f"{place} {mine[i]:.3g}, expected {low[i]:.3g} to {high[i]:.3g}"
        for place, i in (("start", 0), ("end", -1))
        if not low[i] <= mine[i] <= high[i]
    ]
    rises, falls = band["low"][-1] > band["high"][0], band["high"][-1] < band["low"][0]  # in every run of ours
    gained = mine[-1] - mine[0]
    if (rises and gained <= 0) or (falls and gained >= 0):
        found.append(f"goes from {mine[0]:.3g} to {mine[-1]:.3g} where ours {'rise' if rises else 'fall'}")
    return found


def loop(method: str, out: Path, *more: object) -> Path:
    """A run into `out`, unless it is there."""
    if not (out / "model").exists():
        command = ["-m", f"loops.{method}", "--config", f"configs/{method}_tiny.yaml", "--output.dir", str(out)]
        command += ["--output.overwrite", *map(str, more)]
        subprocess.run([sys.executable, *command], check=True, cwd=HERE.parent, stderr=subprocess.DEVNULL)
    return out


def run(folder: Path) -> None:
    """Every method from every base with every seed (seed 0 on two threads as well); then the bands. What is there is
    kept, so that a run that was stopped goes on."""
    runs: dict[str, list[Path]] = {method: [] for method in ("pretrain", *STARTS)}
    for base in BASES:
        there = folder / f"base_{base}"
        starts = {"base": loop("pretrain", there / "base", "--seed", base, "--data.seed", base) / "model"}
        runs["pretrain"].append(there / "base")
        for method, start in STARTS.items():
            for seed in SEEDS:
                for threads in (1, 2) if seed == 0 else (1,):
                    more = [
                        "--model.name",
                        starts[start],
                        "--seed",
                        seed,
                        "--data.seed",
                        0,
                        "--training.cpu_threads",
                        threads,
                    ]
                    runs[method].append(loop(method, there / f"{method}_{seed}_{threads}", *more))
            starts[method] = there / f"{method}_0_1/model"
            print(f"base {base}: {method}", flush=True)
    for method, folders in runs.items():
        write(f"{method}_tiny", [read(out) for out in folders], list(BASES))


def write(path: str, runs: list[list[dict]], bases: list[int]) -> None:
    """The bands of runs of configs/PATH.yaml, a tiny config or a variant of one."""
    method = load(ROOT / f"configs/{path}.yaml").method
    bands = {name: band_of([tenths(rows, name) for rows in runs]) for name in METRICS[method]}
    out = {
        "config": f"configs/{path}.yaml",
        "bases": bases,
        "seeds": list(SEEDS),
        "runs": len(runs),
        "steps": len(runs[0]),
        "metrics": bands,
    }
    (HERE / "expected" / f"{Path(path).name}.json").write_text(json.dumps(out, indent=1) + "\n")
    print(f"wrote benchmarks/expected/{Path(path).name}.json")


def compare(folder: Path) -> tuple[list[str], list[str]]:
    """Draw folder/expected.png; (metrics in which it learns otherwise, and how; what else there is to say)."""
    if not (folder / "metrics.jsonl").is_file():
        raise UserError(f"{folder} is not the folder of a run: there is no metrics.jsonl")
    config, rows = yaml.safe_load((folder / "config.yaml").read_text()), read(folder)
    if len(rows) < PARTS:
        raise UserError(f"{folder}: {len(rows)} steps, too few for {PARTS} tenths")
    method = next((name for name in METRICS if name in config), None)
    if method is None:
        raise UserError(f"{folder}: a run of none of {', '.join(METRICS)}")
    own = HERE / "expected" / f"{folder.name}.json"  # of a variant: outputs/gspo_tiny
    if not own.is_file() and not (HERE / "expected" / f"{method}_tiny.json").is_file():
        raise UserError(
            f"{folder}: no shipped run is called {folder.name}, and loops.{method} has no curves of its own"
        )
    expected = json.loads((own if own.is_file() else HERE / "expected" / f"{method}_tiny.json").read_text())
    lines, differs = [], []
    if len(rows) != expected["steps"]:
        lines.append(
            f"{len(rows)} steps, not the {expected['steps']} of {expected['config']}: tenths are compared with tenths"
        )
    figure = Figure(figsize=(3.2 * len(expected["metrics"]), 2.6), layout="constrained")
    axes = figure.subplots(1, len(expected["metrics"]), squeeze=False)[0]
    middle = [(i + 0.5) / PARTS for i in range(PARTS)]
    for axis, (name, band) in zip(axes, expected["metrics"].items(), strict=True):
        low, high = widened(band, WIDER)
        if not any(name in row for row in rows):
            lines.append(f"{name}: not logged in this run")
            continue
        mine = tenths(rows, name)
        axis.fill_between(middle, low, high, alpha=0.2, label="ours")
        axis.plot(middle, mine, marker=".", color="C1", label=folder.name)
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel(legend(name, method), fontsize=7, color="0.4")
        axis.tick_params(labelsize=7)
        if found := unlike(mine, band):
            differs.append(f"{name}: {'; '.join(found)}")
            continue
        away = [max(low[i] - x, x - high[i], 0.0) for i, x in enumerate(mine)]
        if any(away):
            worst = max(range(PARTS), key=away.__getitem__)
            lines.append(
                f"{name}: outside by {away[worst]:.2g} in tenth {worst + 1}, the furthest of {sum(x > 0 for x in away)}; start, end "
                "and direction are those of ours: noise"
            )
    axes[0].legend(fontsize=7)
    figure.savefig(folder / "expected.png", dpi=110)
    return differs, lines


def main(arguments: list[str]) -> None:
    with clear_exit():
        if not arguments or arguments[0] in ("-h", "--help"):
            print(__doc__)
        elif arguments[0] == "--run":
            if len(arguments) != 2:
                raise UserError("--run FOLDER: where the runs are to be kept")
            run(Path(arguments[1]))
        else:
            folder = Path(arguments[0])
            differs, lines = compare(folder)
            print("\n".join(lines + differs or ["inside the band everywhere"]))
            print(
                "unlike ours: " + ", ".join(line.partition(":")[0] for line in differs)
                if differs
                else "learns like ours"
            )
            print(f"wrote {folder / 'expected.png'}")


if __name__ == "__main__":
    main(sys.argv[1:])
