"""How far apart may two ladders be? Over other bases, seeds and numbers of threads: other roundings, as elsewhere.

    python -m benchmarks.ladder_range --run outputs/range        # 4 bases x 4 seeds, some on two threads: 1 h
    python -m benchmarks.ladder_range outputs/range/ladder_*     # -> benchmarks/expected/ladder_tiny.json

The range of a figure: the smallest and largest of all ladders, each way widened by half their distance, at least by
0.02: the next ladder is one more draw, and two in seventeen draws lie outside the range of sixteen. Reports compare
themselves with it (posttrain/evaluation/ladder_report.py).
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

from posttrain import ROOT
from posttrain.errors import UserError, clear_exit

FIGURES = ("arithmetic", "pass_at", "worked", "old_name", "new_name", "facts", "kl")
BASES, SEEDS, STAGES = range(4), range(4), ("sft", "dpo", "grpo")


def run(folder: Path) -> list[Path]:
    """All ladders, each in a folder of its own; those that are there already are kept."""
    done = []
    for seed in SEEDS:
        for base in BASES:
            name = "tiny-base" if base == 0 else str(folder / f"base_{base}")
            if base and not Path(name).exists():
                command = ["-m", "posttrain.tiny", "--seed", str(base), "--out", name]
                subprocess.run([sys.executable, *command], check=True)
            for threads in (1, 2) if seed < 2 else (1,):
                out = folder / f"ladder_{base}_{seed}_{threads}"
                done.append(out)
                if not (out / "rungs.json").is_file():
                    more = [x for s in STAGES for x in (f"--ladder.{s}.overrides.training.cpu_threads", str(threads))]
                    command = ["-m", "loops.ladder", "--config", "configs/ladder_tiny.yaml", "--ladder.base", name]
                    command += ["--seed", str(seed), "--output.dir", str(out), "--output.overwrite", *more]
                    subprocess.run([sys.executable, *command], check=True, stderr=subprocess.DEVNULL)
    return done


def ranges(folders: list[Path]) -> dict:
    """{stage: {figure: [low, high]}}"""
    stages: dict[str, dict[str, list[float]]] = {}
    for folder in folders:
        if not (folder / "rungs.json").is_file():
            raise UserError(f"{folder}: no rungs.json there; a finished ladder writes one")
        for rung in json.loads((folder / "rungs.json").read_text()):
            for name in FIGURES:
                if rung[name] is not None:
                    stages.setdefault(rung["stage"], {}).setdefault(name, []).append(rung[name])
    out = {}
    for stage, figures in stages.items():
        out[stage] = {}
        for name, values in figures.items():
            room = max(0.02, (max(values) - min(values)) / 2)
            most = math.inf if name == "kl" else 1.0  # the others are shares
            out[stage][name] = [round(max(0.0, min(values) - room), 3), round(min(most, max(values) + room), 3)]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="finished ladders")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="run them all first, into this folder")
    options = parser.parse_args()
    with clear_exit():
        folders = run(options.run) if options.run else options.folders
        if not folders:
            raise UserError("give --run FOLDER, or the folders of finished ladders")
        expected = {"ladders": len(folders), "over": "4 bases, 4 seeds, one or two threads", "stages": ranges(folders)}
        (ROOT / "benchmarks/expected/ladder_tiny.json").write_text(json.dumps(expected, indent=1) + "\n")
        print("wrote benchmarks/expected/ladder_tiny.json")


if __name__ == "__main__":
    main()
