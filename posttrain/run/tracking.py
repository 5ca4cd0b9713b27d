"""Experiment trackers, through Accelerate's: TensorBoard, MLflow, Weights & Biases. metrics.jsonl and curves.png are
written anyway.

A tracker is told what metrics.jsonl is told. One that fails is reported once and left out: it never stops a run."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.config.loading import flat
from posttrain.errors import reason
from posttrain.run import written

_open: list[Trackers] = []


class Trackers:
    def __init__(self, config, main: bool, say: Callable[[str], None], step: int = 0):
        """Started on the main process only. config.tracking says which; the resolved config goes along, flattened."""
        while _open:  # of a run in this process that did not come to its end
            _open.pop().end()
        self.say, self.alive, self.step = say, {}, step
        names = config.tracking.to
        if not main:
            return
        values = {key: value if isinstance(value, (int, float, bool)) else str(value) for key, value in flat(config.model_dump(mode="json")).items()}  # fmt: skip
        for name in names:
            with self._reported(name):
                tracker = self.alive[name] = self._make(name, config)
                tracker.start()
                tracker.store_init_configuration(dict(values))
        _open.append(self)

    def _make(self, name: str, config) -> Any:
        from accelerate import tracking

        project, run = config.tracking.project or "posttrain", config.tracking.run_name or config.folder.name
        if name == "tensorboard":
            self.say(f"tracking: tensorboard --logdir {config.folder / 'logs'}")
            written.note(config.folder, "logs/*events.out.tfevents.*", "logs/*hparams.yml")
            # what was told after the checkpoint is told again
            resumed = {"purge_step": self.step + 1} if self.step else {}
            return tracking.TensorBoardTracker(run, logging_dir=str(config.folder / "logs"), **resumed)
        if name == "mlflow":
            # a server that is gone costs seconds, not minutes
            for setting, value in (
                ("TIMEOUT", "10"),
                ("MAX_RETRIES", "2"),
            ):
                os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{setting}", value)
            self.say("tracking: mlflow ui (reads mlflow.db in this folder, unless MLFLOW_TRACKING_URI is set)")
            return tracking.MLflowTracker(project, run_name=run)
        offline = "WANDB_API_KEY" not in os.environ and "WANDB_MODE" not in os.environ and not _has_wandb_login()
        self.say("tracking: wandb, offline (no key): wandb sync sends it later" if offline else "tracking: wandb")
        mode = {"mode": "offline", "settings": {"silent": True}} if offline else {}
        return tracking.WandBTracker(project, name=run, dir=str(config.folder), **mode)

    def log(self, row: dict[str, float]) -> None:
        for name, tracker in list(self.alive.items()):
            with self._reported(name):
                values = {re.sub(r"[^\w. :/-]", "_", k): v for k, v in row.items() if k != "step"}
                tracker.log(values, step=int(row["step"]))

    def end(self) -> None:
        for name, tracker in list(self.alive.items()):
            with self._reported(name), contextlib.redirect_stdout(io.StringIO()):
                tracker.finish()
        self.alive = {}
        if self in _open:
            _open.remove(self)

    @contextlib.contextmanager
    def _reported(self, name: str):
        try:
            yield
        except (Exception, SystemExit) as problem:
            tracker = self.alive.pop(name, None)
            with contextlib.suppress(Exception, SystemExit):  # what it has begun is not left open
                tracker.finish()
            self.say(
                f"tracking: {name} failed and is left out from here on ({type(problem).__name__}: {reason(problem)})"
            )


def _has_wandb_login() -> bool:
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.is_file() and "api.wandb.ai" in netrc.read_text(errors="ignore")
