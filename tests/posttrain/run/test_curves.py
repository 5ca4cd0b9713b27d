"""curves.png: a panel for every metric, each with what healthy looks like in this loop."""

import matplotlib.figure
import pytest

from posttrain.run import curves

ROWS = [{"step": i, "seconds": 9.0, "loss": 1 / i, "reward": i, "my_reward": 2 * i} for i in range(1, 4)]


def test_one_panel_per_metric_the_known_ones_first(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, path, dpi: drawn.update({path: figure}))
    rows = [*ROWS, {"step": 4, "loss": 0.2}]  # reward was not measured in every step
    curves.plot_curves(tmp_path / "curves.png", rows, "grpo")
    panels = [axis for axis in drawn[tmp_path / "curves.png"].axes if axis.lines]
    assert [axis.get_title() for axis in panels] == ["loss", "reward", "my reward"]
    assert [axis.lines[0].get_xdata().tolist() for axis in panels] == [[1, 2, 3, 4], [1, 2, 3], [1, 2, 3]]
    assert panels[2].lines[0].get_ydata().tolist() == [2, 4, 6]
    assert panels[0].get_xlabel() == "says nothing about progress: watch the reward"


def test_the_gap_to_its_own_answers(tmp_path, monkeypatch):
    """The chosen side at -3.3 where the model's own answers stand at -0.6: two lines that do not meet."""
    drawn = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, path, dpi: drawn.append(figure.axes[0]))
    rows = [{"step": i, "chosen_logps_per_token": -4.3 + i / 10} for i in range(1, 11)]
    curves.plot_curves(tmp_path / "curves.png", rows, "dpo", [-0.5, -0.6])
    curves.plot_curves(tmp_path / "curves.png", rows, "dpo")  # output.samples: 0
    chosen, own = drawn[0].lines
    assert own.get_xdata().tolist() == [1, 10] and own.get_ydata().tolist() == [-0.5, -0.6]
    assert chosen.get_ydata()[-1] == pytest.approx(-3.3) and "dashed line" in drawn[0].get_xlabel()
    assert len(drawn[1].lines) == 1 and drawn[1].get_xlabel() == "does not fall"


def test_a_score_of_a_suite_has_a_panel_with_its_interval(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, path, dpi: drawn.extend(figure.axes))
    of = {"eval/a.right": 0.5, "eval/a.right/low": 0.15, "eval/a.right/high": 0.85, "eval/a.right/n": 4.0}
    # of a single item there is no interval
    alone = {"eval/a.reward": 0.2, "eval/a.reward/n": 1.0}
    curves.plot_curves(tmp_path / "curves.png", [{"step": 0} | of | alone, *ROWS, {"step": 4} | of], "sft")
    panels = {axis.get_title(): axis for axis in drawn if axis.lines}
    assert list(panels) == ["loss", "reward", "eval/a.right", "eval/a.reward", "my reward"]
    assert panels["eval/a.right"].lines[0].get_xdata().tolist() == [0, 4]
    box = panels["eval/a.right"].collections[0].get_paths()[0].get_extents()
    assert [box.x0, box.y0, box.x1, box.y1] == [0, 0.15, 4, 0.85]
    assert panels["eval/a.right"].get_xlabel() == "a suite's score and its 95 % interval, n = 4"
    assert panels["loss"].collections[:] == []


def test_the_file_is_a_picture_and_of_nothing_there_is_none(tmp_path):
    curves.plot_curves(tmp_path / "curves.png", ROWS, "grpo")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    curves.plot_curves(tmp_path / "none.png", [{"step": 1, "seconds": 2.0}], "grpo")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("name", "method", "says"),
    [
        ("loss", "sft", "falls, then flattens"),
        ("loss", "dpo", "dpo_loss + sft_weight x NLL: falls"),
        ("loss", "reward", "starts at ln 2 = 0.693, falls"),
        ("rewards_rejected", "reward", "below chosen"),
        ("rewards_rejected", "dpo", "falls below 0"),
        ("watched/answer", "ppo", "only measured: falling while the reward rises = over-optimised"),
        ("reward/brevity", "grpo", "one of the reward functions: rises"),
    ],
)
def test_what_healthy_looks_like(name, method, says):
    assert curves.legend(name, method) == says
