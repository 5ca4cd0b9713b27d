"""The expected curves of the tiny configs: a run like theirs is inside, a sick one is told where it leaves the band."""

import json

import pytest
import yaml

from benchmarks import expected
from posttrain import ROOT
from posttrain.config import load
from posttrain.errors import UserError

RANGES = ROOT / "benchmarks/expected/ladder_tiny.json"  # of a ladder: figures after each stage, no curves
FILES = sorted(path for path in RANGES.parent.glob("*.json") if path != RANGES)


def test_every_tiny_config_has_its_curves():
    tiny = {path.stem for path in (ROOT / "configs").glob("*_tiny.yaml")} - {"ladder_tiny"}
    variants = sorted((ROOT / "configs/variants").glob("*_tiny.yaml"))
    assert tiny <= {path.stem for path in FILES} <= tiny | {path.stem for path in variants}
    for path in FILES:
        band = json.loads(path.read_text())
        config = load(ROOT / band["config"])
        assert band["seeds"] == [0, 1, 2]
        if config.training.max_steps:
            assert band["steps"] == config.training.max_steps
        for name, ends in band["metrics"].items():
            assert len(ends["low"]) == len(ends["high"]) == 10, name
            assert all(low <= high for low, high in zip(ends["low"], ends["high"], strict=True)), name


def test_the_ladder_has_its_ranges():
    stages = json.loads(RANGES.read_text())["stages"]
    assert list(stages) == ["base", "sft", "dpo", "grpo"]
    for name, figures in stages.items():
        assert set(figures) >= {"arithmetic", "pass_at", "worked", "old_name", "new_name", "facts"}
        for figure, (low, high) in figures.items():
            assert 0 <= low <= high and (high <= 1 or figure == "kl"), (name, figure)


def write(folder, method, metrics):
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({method: {}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return folder


def test_inside_and_outside(tmp_path):
    band = json.loads((ROOT / "benchmarks/expected/dpo_tiny.json").read_text())
    middle = {n: [(a + b) / 2 for a, b in zip(m["low"], m["high"], strict=True)] for n, m in band["metrics"].items()}
    per = band["steps"] // 10
    rows = [
        {"step": i + 1, **{n: values[min(i // per, 9)] for n, values in middle.items()}} for i in range(band["steps"])
    ]
    healthy = write(tmp_path / "healthy", "dpo", rows)
    assert expected.compare(healthy) == [] and (healthy / "expected.png").stat().st_size > 5000
    sick = write(tmp_path / "sick", "dpo", [row | {"chosen_logps_per_token": -3.0} for row in rows])
    (line,) = expected.compare(sick)
    assert line.startswith("chosen_logps_per_token: outside in 10 of 10 tenths, first in tenth 1: -3, expected ")
    with pytest.raises(UserError, match="3 steps, too few for 10 tenths"):
        expected.compare(write(tmp_path / "three", "dpo", rows[:3]))
    other = write(tmp_path / "other", "dpo", [{k: v for k, v in row.items() if k != "accuracy"} for row in rows])
    assert expected.compare(other) == ["accuracy: not logged in this run"]
    line = expected.compare(write(tmp_path / "short", "dpo", rows[::2]))[0]
    assert line.startswith(f"{band['steps'] // 2} steps, not the {band['steps']} of configs/dpo_tiny.yaml")


def test_what_is_no_run(tmp_path):
    with pytest.raises(SystemExit, match=r"is not the folder of a run: there is no metrics.jsonl"):
        expected.main([str(tmp_path)])
