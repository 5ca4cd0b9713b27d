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
    tiny |= {path.stem for path in variants if load(path).method == "grpo"}
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


BAND = {"low": [0.3, *[0.6] * 8, 0.8], "high": [0.4, *[0.7] * 8, 0.9]}  # rises; a quarter of 0.9 − 0.3 is 0.15


def test_unlike_is_another_start_another_end_or_another_direction_and_no_noise():
    ours = [0.35, *[0.65] * 8, 0.85]
    assert expected.unlike(ours, BAND) == []
    assert expected.unlike([0.35, 0.1, *[0.65] * 6, 1.5, 0.85], BAND) == []  # far outside in between: noise
    assert expected.unlike([0.54, *ours[1:]], BAND) == []  # 0.4 + 0.15 is the most
    assert expected.unlike([0.56, *ours[1:]], BAND) == ["start 0.56, expected 0.15 to 0.55"]
    assert expected.unlike([*ours[:-1], 0.5], BAND) == ["end 0.5, expected 0.65 to 1.05"]
    down = expected.unlike([0.45, *ours[1:-1], 0.44], BAND)
    assert down == ["end 0.44, expected 0.65 to 1.05", "goes from 0.45 to 0.44 where ours rise"]


def test_the_room_for_one_more_draw_is_half_the_distance_of_those_there_are():
    low, high = expected.widened({"low": [0.0, 1.0], "high": [0.4, 1.0]}, 0.1)
    assert low == pytest.approx([-0.2, 0.9]) and high == pytest.approx([0.6, 1.1])  # ½ · 0.4; a tenth of 1.0 − 0.0
    assert expected.band_of([[1.0, 5.0], [2.0, 4.0], [1.5, 4.5]]) == {"low": [1.0, 4.0], "high": [2.0, 5.0]}


def test_inside_and_outside(tmp_path, capsys):
    band = json.loads((ROOT / "benchmarks/expected/dpo_tiny.json").read_text())
    middle = {n: [(a + b) / 2 for a, b in zip(m["low"], m["high"], strict=True)] for n, m in band["metrics"].items()}
    per = band["steps"] // 10
    rows = [
        {"step": i + 1, **{n: values[min(i // per, 9)] for n, values in middle.items()}} for i in range(band["steps"])
    ]
    healthy = write(tmp_path / "healthy", "dpo", rows)
    assert expected.compare(healthy) == ([], []) and (healthy / "expected.png").stat().st_size > 5000
    expected.main([str(healthy)])
    assert "learns like ours" in capsys.readouterr().out
    sick = write(tmp_path / "sick", "dpo", [row | {"chosen_logps_per_token": -3.0} for row in rows])
    (line,), _ = expected.compare(sick)
    assert line.startswith("chosen_logps_per_token: start -3, expected ") and "end -3, expected" in line
    expected.main([str(sick)])
    assert "unlike ours: chosen_logps_per_token" in capsys.readouterr().out
    odd = [row | ({"margin": 99.0} if 20 <= i < 25 else {}) for i, row in enumerate(rows)]  # the fifth tenth of 50
    differs, (line,) = expected.compare(write(tmp_path / "odd", "dpo", odd))
    assert differs == [] and line.startswith("margin: outside by ") and "tenth 5, the furthest of 1" in line
    with pytest.raises(UserError, match="3 steps, too few for 10 tenths"):
        expected.compare(write(tmp_path / "three", "dpo", rows[:3]))
    other = write(tmp_path / "other", "dpo", [{k: v for k, v in row.items() if k != "accuracy"} for row in rows])
    assert expected.compare(other) == ([], ["accuracy: not logged in this run"])
    line = expected.compare(write(tmp_path / "short", "dpo", rows[::2]))[1][0]
    assert line.startswith(f"{band['steps'] // 2} steps, not the {band['steps']} of configs/dpo_tiny.yaml")


def test_what_is_no_run(tmp_path):
    with pytest.raises(SystemExit, match=r"is not the folder of a run: there is no metrics.jsonl"):
        expected.main([str(tmp_path)])


def test_a_run_of_a_variant_is_compared_with_its_own_curves(tmp_path):
    band = json.loads((ROOT / "benchmarks/expected/gspo_tiny.json").read_text())
    middle = {n: [(a + b) / 2 for a, b in zip(m["low"], m["high"], strict=True)] for n, m in band["metrics"].items()}
    rows = [
        {"step": i + 1, **{n: values[i * 10 // band["steps"]] for n, values in middle.items()}}
        for i in range(band["steps"])
    ]
    assert expected.compare(write(tmp_path / "gspo_tiny", "grpo", rows)) == ([], [])
    assert expected.compare(write(tmp_path / "another", "grpo", rows))[1][0].endswith(
        "of configs/grpo_tiny.yaml: tenths are compared with tenths"
    )


def test_every_method_runs_from_every_base_with_every_seed_and_once_on_two_threads(tmp_path, monkeypatch):
    """The runs are faked: what is asked for, from which start, and the bands that come of it."""
    asked = []

    def fake(method, out, *more):
        asked.append((method, dict(zip(more[::2], more[1::2], strict=True))))
        out.mkdir(parents=True)
        rows = [{name: float(len(asked)) for name in expected.METRICS[method]} for _ in range(10)]
        (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return out

    (tmp_path / "expected").mkdir()
    monkeypatch.setattr(expected, "HERE", tmp_path)
    monkeypatch.setattr(expected, "loop", fake)
    expected.run(tmp_path / "runs")
    of_grpo = [options for method, options in asked if method == "grpo"]
    assert len(of_grpo) == 12 and len([1 for method, _ in asked if method == "pretrain"]) == 3
    assert sorted((o["--seed"], o["--training.cpu_threads"]) for o in of_grpo) == sorted(
        [(0, 1), (0, 2), (1, 1), (2, 1)] * 3
    )
    starts = {str(o["--model.name"].relative_to(tmp_path)) for o in of_grpo}
    assert starts == {f"runs/base_{base}/dpo_0_1/model" for base in range(3)}  # GRPO climbs from DPO's model
    told = json.loads((tmp_path / "expected/grpo_tiny.json").read_text())
    assert told["runs"] == 12 and told["bases"] == told["seeds"] == [0, 1, 2] and told["steps"] == 10
    reward = told["metrics"]["reward"]
    numbers = [i for i, (method, _) in enumerate(asked, 1) if method == "grpo"]
    assert reward == {"low": [min(numbers)] * 10, "high": [max(numbers)] * 10}
