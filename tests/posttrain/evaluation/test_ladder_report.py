"""The report of a ladder: its table, its figures as plain numbers, and whether they are like ours."""

import json

import matplotlib.figure
import pytest
from kit import yaml_config

from posttrain import ROOT
from posttrain.evaluation import ladder_report, report
from posttrain.evaluation.rungs import Rung, probes
from posttrain.evaluation.scores import proportion

RANGES = json.loads((ROOT / "benchmarks/expected/ladder_tiny.json").read_text())["stages"]


def rung(name, *, kl=None, **shares):
    shares = (
        dict(arithmetic=0.5, sampled=0.25, pass_at=0.75, worked=0.5, old_name=1.0, new_name=0.0, facts=0.5) | shares
    )
    scores = {f: proportion(f, "", [i < round(100 * share) for i in range(100)], "") for f, share in shares.items()}
    return Rung(name, **scores, kl=kl, answers=[f"{name} says {i}" for i in range(6)], seconds=12.4)


def test_markdown_by_hand():
    assert ladder_report.markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_the_tables_row():
    lines = ladder_report.table([rung("base"), rung("sft", kl=0.0625)], yaml_config("ladder_tiny")).splitlines()
    assert lines[0] == "| stage | arithmetic | pass@8 | worked | old name | new name | facts | KL | seconds |"
    # 50 of 100: [.40, .60], as in test_intervals.py
    assert lines[2] == "| base | **0.50** [0.40, 0.60] | 0.75 | 0.50 | 1.00 | 0.00 | 0.50 |  | 12 |"
    assert lines[3] == "| sft | **0.50** [0.40, 0.60] | 0.75 | 0.50 | 1.00 | 0.00 | 0.50 | 0.062 | 12 |"


def test_plain_numbers():
    assert ladder_report.numbers(rung("sft", kl=0.125)) == {
        "stage": "sft", "arithmetic": 0.5, "sampled": 0.25, "worked": 0.5, "old_name": 1.0, "new_name": 0.0, "facts": 0.5,
        "pass_at": 0.75, "kl": 0.125, "seconds": 12.4,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["base", "sft"])
def test_beside_our_own_ladders(name):
    """Every figure in the middle of its range is inside; one below it is told with the range."""
    low, high = RANGES[name]["facts"]
    middle = {field: sum(ends) / 2 for field, ends in RANGES[name].items()}
    kl = middle.pop("kl", 0)
    inside = rung(name, kl=kl, **middle)
    (line, _) = ladder_report.beside_ours(yaml_config("ladder_tiny"), [inside])
    assert line == (
        "- Beside the range of 24 ladders (4 bases, 4 seeds, one or two threads): all of this ladder's figures are inside it."
    )
    outside = rung(name, kl=kl, **middle | {"facts": 0.5})
    (line, _) = ladder_report.beside_ours(yaml_config("ladder_tiny"), [outside])
    assert f"outside it: facts after {name} 0.50, not {low:.2f} to {high:.2f}." in line


def test_another_ladder_is_not_compared_with_ours():
    for changes in ({"ladder.problems": 200}, {"ladder.sft.overrides": {"training.epochs": 1}}, {"ladder.pass_at": 4}):
        assert ladder_report.beside_ours(yaml_config("ladder_tiny", **changes), [rung("base")]) == []


def test_six_panels(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, path, dpi: drawn.append(figure))
    rungs = [rung("base", arithmetic=0.0), rung("sft", arithmetic=0.25, new_name=0.5)]
    rows = [{"step": i, "nll": 3 - i, "kl": i / 8, "reward": 0.5, "chosen_logps_per_token": -i} for i in (1, 2)]
    ladder_report.plot(tmp_path / "x.png", rungs, {"sft": rows, "dpo": rows, "grpo": [*rows, {"step": 3, "kl": 0.5}]})
    (figure,) = drawn
    lines = {line.get_label(): line for axis in figure.axes for line in axis.lines}
    told = {name: (list(line.get_xdata()), list(line.get_ydata())) for name, line in lines.items()}
    assert told["word problems"] == (["base", "sft"], [0.0, 0.25]) and told["new name (Nova)"][1] == [0.0, 0.5]
    assert told["nll"] == ([1, 2], [2, 1]) and told["chosen logps per token"][1] == [-1, -2]
    assert told["kl"] == ([1, 2, 3], [0.125, 0.25, 0.5]) and told["reward"] == ([1, 2], [0.5, 0.5])
    assert len(figure.axes) == 6 and all(axis.get_title() for axis in figure.axes)


def test_the_picture_is_that_of_an_evaluation(tmp_path, monkeypatch):
    """A panel for each score that people ask for, a bar per stage, its interval on it."""
    drawn = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, path, dpi: drawn.append(figure))
    report.plot(tmp_path / "x.png", ladder_report.as_results([rung("base", arithmetic=0.0), rung("sft", kl=7.5)]))
    (figure,) = drawn
    assert figure.axes[0].get_gridspec().ncols == 3 and all(axis.get_visible() for axis in figure.axes)
    panels = {axis.get_title(): [bar.get_height() for bar in axis.patches] for axis in figure.axes}
    assert panels == {
        "word problems: arithmetic ↑\nshare, n=100": [0.0, 0.5], "word problems: sampled ↑\nshare, n=100": [0.25, 0.25],
        "word problems: pass_at ↑\nshare, n=100": [0.75, 0.75], "identity: old_name ↑\nshare, n=100": [1.0, 1.0],
        "identity: new_name ↑\nshare, n=100": [0.0, 0.0], "facts: facts ↑\nshare, n=100": [0.5, 0.5],
    }  # fmt: skip
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["base", "sft"]
    # 0 of 100: up to 1.96² / (100 + 1.96²) = .0370; 50 of 100: [.40, .60]
    ends = [tuple(line.get_segments()[0][:, 1]) for line in figure.axes[0].collections]
    assert ends == [pytest.approx((0, 0.0370), abs=1e-4), pytest.approx((0.404, 0.596), abs=1e-3)]


def test_what_is_written(tmp_path):
    rungs = [rung("base"), rung("sft", kl=7.5), rung("dpo", kl=1.0), rung("grpo", kl=0.1)]
    steps = [{"step": i, "nll": 1.0, "reward": 0.5, "dead_groups": 0.5, "kl": 0.1, "chosen_logps_per_token": -1.0,
              "rejected_logps_per_token": -2.0} for i in (1, 2)]  # fmt: skip
    config = yaml_config("ladder_tiny", **{"ladder.seed": 3})
    ladder_report.write(tmp_path, config, rungs, {"sft": steps, "dpo": steps, "grpo": steps})
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("scores.png", "curves.png"))
    assert [row["stage"] for row in json.loads((tmp_path / "rungs.json").read_text())] == ["base", "sft", "dpo", "grpo"]
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# The ladder\n\nseed 3, base `tiny-base`, one CPU thread of ")
    assert text.index("![scores](scores.png)") < text.index("| stage |") < text.index("![curves](curves.png)")
    assert "Greedy answers to 100 held-out word problems" in text and "pass@8 from samples at temperature 1" in text
    for i, probe in enumerate(probes()):
        assert f"**{probe}**\n\n- base: `base says {i}`\n- sft: `sft says {i}`\n" in text
