"""Several PPO runs in one picture: what was rewarded, what was right, what the critic knew, how far the policy went.

python -m benchmarks.road outputs/ppo_tiny outputs/ppo_learned --out outputs/road.png
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = {
    "score (what PPO climbs)": ["reward"],
    "right answers among the samples": ["watched/answer", "reward"],  # with the verifiable reward the score itself
    "explained variance of the returns": ["explained_variance"],
    "KL to the start (k1, nats per token)": ["kl_k1"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of loops.ppo")
    parser.add_argument("--out", type=Path, default=Path("outputs/road.png"))
    arguments = parser.parse_args()
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 2.9), layout="constrained")
    for run in arguments.runs:
        if not (run / "metrics.jsonl").is_file():
            sys.exit(f"error: {run}: no metrics.jsonl there; a run of loops.ppo writes one")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for axis, (title, keys) in zip(axes, PANELS.items(), strict=True):
            key = next(k for k in keys if k in rows[0])
            values = [sum(r[key] for r in rows[i : i + 8]) / len(rows[i : i + 8]) for i in range(0, len(rows), 8)]
            axis.plot([8 * (i + 1) for i in range(len(values))], values, lw=1.3, label=run.name)
            axis.set_title(title, fontsize=9)
            axis.set_xlabel("optimiser step", fontsize=8)
            axis.grid(alpha=0.25)
    axes[0].legend(fontsize=7)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=80)


if __name__ == "__main__":
    main()
