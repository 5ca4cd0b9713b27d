"""Trackers are told what metrics.jsonl is told; a missing package is one line, and a tracker that fails stops nothing."""

import importlib.util
import sqlite3

import pytest
from kit import run_loop

from loops import sft
from posttrain.errors import UserError
from posttrain.run import tracking, training

ROWS = [{"prompt": f"Is {i} even?", "completion": "Yes." if i % 2 == 0 else "No."} for i in range(8)]


def run(model, tmp_path, to):
    told = {"tracking__to": to, "tracking__project": "a project", "data__name": ["a.jsonl", "b.jsonl"]}
    return run_loop(sft, model, tmp_path, rows=ROWS, training__epochs=2, training__max_steps=3, **told)


def test_a_missing_package_stops_the_run_before_anything_is_loaded_or_removed(tmp_path, llama, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else real(name))
    with pytest.raises(UserError, match=r"pip install wandb"):
        run(llama, tmp_path, ["wandb"])
    assert not (tmp_path / "run").exists()


class Fake:
    """A tracker that notes what it is told, and fails from the second log on."""

    def __init__(self):
        self.told, self.config = [], None

    def start(self):
        pass

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step):
        self.told.append((step, values))
        if step == 2:
            raise ConnectionError("the server is gone\nand much more")

    def finish(self):
        raise AssertionError("a tracker that failed is left alone")


def test_one_that_fails_is_reported_once_and_left_out(tmp_path, llama, monkeypatch, capsys):
    fake = Fake()
    monkeypatch.setattr(training, "refuse_missing", lambda names: None)
    monkeypatch.setattr(tracking.Trackers, "_make", lambda self, name, config: fake)
    result = run(llama, tmp_path, ["mlflow"])
    assert [step for step, _ in fake.told] == [1, 2] and len(result.metrics) == 3
    assert fake.told[0][1] == {k: v for k, v in result.metrics[0].items() if k != "step"}
    assert fake.config["training.max_steps"] == 3 and fake.config["data.name"] == "['a.jsonl', 'b.jsonl']"
    assert all(isinstance(v, (int, float, str, bool)) for v in fake.config.values())
    err = capsys.readouterr().err
    assert err.count("tracking: mlflow failed and is left out from here on (ConnectionError: the server is gone)") == 1


def test_one_that_cannot_start_stops_nothing(tmp_path, llama, monkeypatch, capsys):
    def broken(self, name, config):
        raise OSError("no such server")

    monkeypatch.setattr(training, "refuse_missing", lambda names: None)
    monkeypatch.setattr(tracking.Trackers, "_make", broken)
    assert len(run(llama, tmp_path, ["wandb"]).metrics) == 3
    assert "wandb failed and is left out from here on (OSError: no such server)" in capsys.readouterr().err


@pytest.mark.long
def test_the_real_ones(tmp_path, llama, monkeypatch, capfd):
    """TensorBoard, MLflow on its default sqlite store, W&B offline without a key: what make test-long installs."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    result = run(llama, tmp_path, ["tensorboard", "mlflow", "wandb"])
    assert "is left out" not in capfd.readouterr().err

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "logs" / "run"))
    events.Reload()
    losses = [row["loss"] for row in result.metrics]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(losses)
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3]

    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        told = database.execute("select step, value from metrics where key = 'loss' order by step").fetchall()
        assert told == [(i + 1, pytest.approx(loss)) for i, loss in enumerate(losses)]
        assert ("3",) in database.execute("select value from params where key = 'training.max_steps'").fetchall()
        assert ("a project",) in database.execute("select name from experiments").fetchall()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
