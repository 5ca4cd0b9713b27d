"""A run of a shipped tiny config, drawn over what three seeds of it gave: is mine like theirs?

    python -m loops.sft --config configs/sft_tiny.yaml
    python -m benchmarks.expected outputs/sft_tiny    # writes expected.png there, says where it leaves the band
    python -m benchmarks.expected --make sft dpo      # runs seeds 0, 1, 2 again and writes benchmarks/expected/*.json

The band of a metric: the smallest and largest of the three seeds' means over each tenth of the run, widened by a tenth
of the metric's whole range (three seeds are few)."""

import itertools
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from posttrain.config import load
from posttrain.errors import UserError, clear_exit
from posttrain.run.curves import legend

HERE = Path(__file__).resolve().parent
PARTS, SEEDS, WIDER = 10, (0, 1, 2), 0.1
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


def make(name: str) -> None:
    """name: of a loop that has a tiny config (dpo), or of a variant (ipo)."""
    path = f"{name}_tiny" if (HERE.parent / f"configs/{name}_tiny.yaml").is_file() else f"variants/{name}_tiny"
    method, runs = load(HERE.parent / f"configs/{path}.yaml").method, []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            command = ["-m", f"loops.{method}", "--config", f"configs/{path}.yaml", "--seed", str(seed), "--data.seed", str(seed if method == "pretrain" else 0), "--output.dir", folder, "--output.overwrite"]  # fmt: skip
            subprocess.run([sys.executable, *command], check=True, cwd=HERE.parent, stderr=subprocess.DEVNULL)
            runs.append(read(Path(folder)))
    write(path, runs)


def write(path: str, runs: list[list[dict]]) -> None:
    """The bands of three runs of configs/PATH.yaml."""
    bands, config = {}, load(HERE.parent / f"configs/{path}.yaml")
    for name in METRICS[config.method]:
        curves = [tenths(rows, name) for rows in runs]
        bands[name] = {
            "low": [round(min(values), 4) for values in zip(*curves, strict=True)],
            "high": [round(max(values), 4) for values in zip(*curves, strict=True)],
        }
    out = {"config": f"configs/{path}.yaml", "seeds": list(SEEDS), "steps": len(runs[0]), "metrics": bands}
    (HERE / "expected" / f"{Path(path).name}.json").write_text(json.dumps(out, indent=1) + "\n")
    print(f"wrote benchmarks/expected/{Path(path).name}.json")


def compare(folder: Path) -> list[str]:
    """Draw folder/expected.png; the lines that say where the run leaves the band."""
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
    lines = []
    if len(rows) != expected["steps"]:
        lines.append(
            f"{len(rows)} steps, not the {expected['steps']} of {expected['config']}: tenths are compared with tenths"
        )
    figure = Figure(figsize=(3.2 * len(expected["metrics"]), 2.6), layout="constrained")
    axes = figure.subplots(1, len(expected["metrics"]), squeeze=False)[0]
    middle = [(i + 0.5) / PARTS for i in range(PARTS)]
    for axis, (name, band) in zip(axes, expected["metrics"].items(), strict=True):
        room = WIDER * (max(band["high"]) - min(band["low"]))
        low, high = [x - room for x in band["low"]], [x + room for x in band["high"]]
        if not any(name in row for row in rows):
            lines.append(f"{name}: not logged in this run")
            continue
        mine = tenths(rows, name)
        axis.fill_between(middle, low, high, alpha=0.2, label=f"seeds {expected['seeds']}")
        axis.plot(middle, mine, marker=".", color="C1", label=folder.name)
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel(legend(name, method), fontsize=7, color="0.4")
        axis.tick_params(labelsize=7)
        outside = [i for i, x in enumerate(mine) if not low[i] <= x <= high[i]]
        if outside:
            i = outside[0]
            lines.append(
                f"{name}: outside in {len(outside)} of {PARTS} tenths, first in tenth {i + 1}: {mine[i]:.3g}, expected {low[i]:.3g} to {high[i]:.3g}"
            )
    axes[0].legend(fontsize=7)
    figure.savefig(folder / "expected.png", dpi=110)
    return lines


def main(arguments: list[str]) -> None:
    with clear_exit():
        if not arguments or arguments[0] in ("-h", "--help"):
            print(__doc__)
        elif arguments[0] == "--make":
            for name in arguments[1:] or [m for m in METRICS if (HERE.parent / f"configs/{m}_tiny.yaml").is_file()]:
                make(name)
        else:
            folder = Path(arguments[0])
            lines = compare(folder)
            print("\n".join(lines) or "inside the band everywhere")
            print(f"wrote {folder / 'expected.png'}")


if __name__ == "__main__":
    main(sys.argv[1:])
