"""docs/real_model.md's table: the smallest and the largest of several runs of posttrain.real.

for s in 0 1 2; do python -m posttrain.real --config configs/real.yaml --seed $s --output.dir outputs/real_$s; done
python -m benchmarks.real_range outputs/real_0 outputs/real_1 outputs/real_2
"""

import sys
from pathlib import Path

from posttrain.evaluation.lessons import metrics_of, score, seconds_of
from posttrain.evaluation.lessons_report import COLUMNS, paired
from posttrain.evaluation.report import markdown_table
from posttrain.evaluation.results import read


def span(values: list[float], digits: int = 2) -> str:
    low, high = (f"{f(values):.{digits}f}" for f in (min, max))
    return low if low == high else f"{low} to {high}"


def main(folders: list[str]) -> None:
    runs = [read(folder) for folder in folders]
    rows = []
    for stage in zip(*(run.models for run in runs), strict=True):
        shown = [span([score(m, column).value for m in stage]) for column in COLUMNS]
        rows.append([stage[0].name, *shown, span([score(m, "length").value for m in stage], 0)])
    print(markdown_table(["", *COLUMNS.values(), "tokens"], rows) + "\n")
    for folder, run in zip(folders, runs, strict=True):
        _, sft, _, grpo = run.models
        gained = paired(sft, grpo, "sampled")
        metrics = {name: metrics_of(Path(folder) / name) for name in ("sft", "dpo", "grpo")}
        minutes = ", ".join(f"{name} {seconds_of(rows) / 60:.1f}" for name, rows in metrics.items())
        print(f"{folder}: GRPO {gained}; KL {metrics['grpo'][-1]['kl']:.3f}; minutes of steps: {minutes}; "
              f"at most {max(row['memory_gib'] for rows in metrics.values() for row in rows):.1f} GiB")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:]) if len(sys.argv) > 1 else sys.exit(__doc__)
