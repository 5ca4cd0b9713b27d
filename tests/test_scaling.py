"""benchmarks.scaling, small: every panel is measured beside what it is counted to cost, drawn and written."""

import json

import pytest

from benchmarks import scaling
from posttrain.models.duration import Cost, Fit


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quick(tmp_path, capsys, dtype):
    scaling.main(["--quick", "--dtype", dtype, "--threads", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found["points"]) == list(scaling.PANELS) and set(found["fitted"]) == {"training", "sampling"}
    for name, points in found["points"].items():
        assert [p[name] for p in points] == [getattr(p, name) for p in scaling.PANELS[name][1][:3]]
        for p in points:
            assert len(p["seconds"]) == 2 and min(p["seconds"]) > 0 and Cost(**p["work"]).flops > 1e6
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "| 4 rows of 128 tokens |" in out and "sampling: Fit(" in out


def made_up(products: float, started: float, fit: Fit) -> dict:
    """A point that took exactly what this fit says, at a million FLOP a second and a millisecond a start."""
    able = {"products": 1e6, "narrow": 1.0, "few": 1.0, "attention": 1.0, "moved": 1.0, "softmax": 1.0, "start": 1e-3}
    work = {"products": products, "started": started}
    seconds = fit.work * products / 1e6 + fit.start * started * 1e-3
    return {"work": work, "rates": [able] * 3, "seconds": [seconds] * 3}


def test_the_fit_finds_what_was_put_in():
    truth = Fit(1.5, 20.0)
    points = [made_up(p, s, truth) for p, s in ((1e6, 1), (1e6, 100), (1e5, 500), (1e7, 50))]
    assert scaling.fitted(points) == pytest.approx(truth, abs=0.01)
    assert [scaling.ratio(p, truth) for p in points] == pytest.approx([1.0] * 4)
    fast = [made_up(p, s, Fit(0.2, 20.0)) for p, s in ((1e6, 1), (1e6, 100))]
    assert scaling.fitted(fast).work == pytest.approx(1.0)  # no kernel is faster than its own rate


def test_the_counted_work_of_a_point():
    """4 rows of 128 tokens, a quarter learned; one prompt of 128 behind which 2 answers of 32 stand."""
    shape = scaling.memory.shape_of(scaling.model_of(scaling.Point(hidden=64, layers=1)).config)
    small = scaling.Point(hidden=64, layers=1)
    cost, size, (tokens, length) = scaling.counted(small, shape, 4)
    assert (tokens, length) == (512, 128) and size > 4 * shape.parameters
    # 4 x 64 x 64 + 3 x 64 x 170 = 49,024 weights, three passes over 512 tokens; the head three over 128 predictions
    assert shape.linear == 49_024 and cost.products == 3 * 2 * 512 * 49_024 + 3 * 2 * 128 * 64 * 4096
    assert cost.attention == (4 + 10) * 64 * 4 * 128**2
    _, _, (tokens, length) = scaling.counted(scaling.Point(hidden=64, layers=1, group=2), shape, 4)
    assert (tokens, length) == (128 + 2 * 32, 160)
