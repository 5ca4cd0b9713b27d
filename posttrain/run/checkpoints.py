"""When a run writes a checkpoint, and how it goes on from one as if it had never stopped. checkpoint_files.py has the
files."""

from __future__ import annotations

import hashlib
import json
import math
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from posttrain.errors import UserError, writing
from posttrain.models import sharded
from posttrain.run import checkpoint_files, fingerprints, folder, processes


class Checkpoints:
    """Of one run. Nothing is done at all unless training.save_every, training.best_metric or --resume asks for it."""

    def __init__(self, run):
        self.run, self.config = run, run.config
        training = self.config.training
        self.wanted = bool(training.save_every or training.best_metric or self.config.resume)
        self.bests: dict[str, dict[str, float]] = {}  # {metric: {"step", "value"}}; of an earlier best_metric, too
        self.fingerprints: dict[str, str] = {}
        self._stream = hashlib.blake2b(digest_size=8)
        self.resumed_from = folder.choose(self.config)
        self._info: dict[str, Any] = {}  # run.json of the checkpoint
        self._saved: dict[str, Any] = {}  # its loop.pt
        self.began: datetime | None = None  # when that run did
        if self.resumed_from is not None:
            self._refuse_another_run()
        elif self.config.resume:
            run.say(f"--resume: no checkpoint in {run.folder}, starting at step 0")

    # ------------------------------------------------------------ going on

    def _refuse_another_run(self) -> None:
        """Before anything is loaded."""
        self._info = checkpoint_files.read(self.resumed_from / "run.json")
        lines = fingerprints.compare(self._info["config"], self.config.model_dump(mode="json"), self.resumed_from)
        compute = str(self.run.compute).removeprefix("torch.")
        before = self._info.get("compute", self._info["config"]["model"]["dtype"])  # (an older one has the key alone)
        if before not in ("auto", compute):
            raise UserError(
                f"{self.resumed_from} was computed in {before}, not in {compute}: give --model.dtype {before}"
            )
        before, now = self._info["processes"], self.run.accelerator.num_processes
        if before != now:
            lines.append(f"{before} processes then, {now} now: {fingerprints.same_steps(self.config.method)}")
        for line in lines:
            self.run.say(line)
        self.began = datetime.fromisoformat(self._info["began"])
        self._saved = checkpoint_files.read(self.resumed_from / "loop.pt")

    def remember(self, what: str, thing: nn.Module | list | Any) -> None:
        """Note the fingerprint of a model, of rows or of functions; of a resumed run, refuse one that is not what it
        was."""
        if not self.wanted or not isinstance(thing, (nn.Module, list)):
            return
        of = fingerprints.fingerprint
        if isinstance(thing, list):
            of = fingerprints.fingerprint_of_functions if callable(thing[0]) else fingerprints.fingerprint_of_rows
        self.fingerprints[what] = of(thing)
        self._refuse_other(what, self.fingerprints[what])

    def _refuse_other(self, what: str, now: str) -> None:
        before = self._info.get("fingerprints", {}).get(what, now)
        if before != now:
            raise UserError(
                f"{what}: not what it was when {self.resumed_from} was written (fingerprint {before} then, {now} now). Has its source "
                "changed? Going on would mix two runs: start again with --output.overwrite or in another --output.dir"
            )

    def read_on(self, items: Any, rows: list) -> None:
        """A stream has no fingerprint beforehand: what is read of it is folded into one, which a resumed run reads
        again."""
        if self.wanted and not isinstance(items, list):
            for row in rows:
                fingerprints.fold(self._stream, row)
            self.fingerprints["the stream"] = self._stream.hexdigest()

    def compare_stream(self) -> None:
        """Asked where the checkpoint was written."""
        if "the stream" in self.fingerprints:
            self._refuse_other("the stream", self.fingerprints["the stream"])

    def saved(self, name: str) -> Any:
        """What the loop had put into the checkpoint that the run is resumed from; None on a fresh start."""
        return self._saved.get(name)

    def in_flight(self) -> dict[str, Any] | None:
        """RL, once: the rollout in the middle of which the checkpoint was written."""
        saved, self._saved = self._saved, {}
        if "answers" not in saved:
            return None
        if not self.run.accelerator.is_main_process:  # they were summed over the processes: one of them has them now
            saved["metrics"] = {name: (0.0, 0.0) for name in saved["metrics"]}
        return saved

    def restore(self, policy: nn.Module, optimizer, scheduler) -> None:
        """Weights, optimiser, schedule, counters; the random states last."""
        self._prepared, run = (policy, optimizer, scheduler), self.run
        if self.resumed_from is None:
            return
        checkpoint_files.load_weights(run.accelerator.unwrap_model(policy), self.resumed_from)
        state = checkpoint_files.read(self.resumed_from / "optimizer.pt")
        sharded.load_optimizer_state(policy, optimizer, state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        run.step, run.rollout, run.update = (self._info[name] for name in ("step", "rollout", "update"))
        run.started -= self._info["seconds"]
        self.bests = self._info["bests"]
        if run.step > run.num_steps:
            raise UserError(
                f"{self.resumed_from}: {run.step} steps are done, more than training.max_steps = {run.num_steps}"
            )
        kept = self.resumed_from / "metrics.jsonl"
        run.metrics = [json.loads(line) for line in kept.read_text().splitlines()]
        if run.accelerator.is_main_process:  # what was logged after the checkpoint is logged again
            with writing(run.folder):
                run.metrics_file.path.write_bytes(kept.read_bytes())
                run.rollouts_file.cut(self._info["rollout_log"])
            self._prune(run.step)  # killed between the two: written, and the oldest not yet gone
        states, process = self._saved["random"], run.accelerator.process_index
        checkpoint_files.restore_random_states(states[min(process, len(states) - 1)])
        if process >= len(states):  # there were fewer: not the same dropout masks as the last of them
            torch.manual_seed(self.config.training.seed + 1_000_003 * run.step + process)
        left = "" if run.step < run.num_steps else ": nothing is left to do, the model is written again"
        run.say(f"resumed from {self.resumed_from}: {run.step} of {run.num_steps} steps are done{left}")

    # ------------------------------------------------------------ writing

    def due(self) -> bool:
        """Asked after log: every training.save_every steps, and whenever training.best_metric is better than ever."""
        t, row, better = self.config.training, self.run.metrics[-1], False
        if t.best_metric is not None and t.best_metric in row:
            value, sign = row[t.best_metric], -1 if "loss" in t.best_metric else 1
            best = self.bests.get(t.best_metric)
            better = math.isfinite(value) and (best is None or sign * value > sign * best["value"])
            if better:
                self.bests[t.best_metric] = {"step": self.run.step, "value": value}
        return better or (t.save_every is not None and self.run.step % t.save_every == 0)

    def write(self, state: dict | None = None) -> None:
        """checkpoints/step_N. state: what the loop is in the middle of, and reads again with saved() or in_flight()."""
        run, (policy, optimizer, scheduler) = self.run, self._prepared
        policy, model = run.accelerator.unwrap_model(policy), run.model
        of_optimizer, of_model = sharded.optimizer_state(policy, optimizer), sharded.state_dict(model)
        trained = checkpoint_files.trained(policy, model, of_model)
        loop = {"random": processes.gather(checkpoint_files.random_states()), **checkpoint_files.plain(state or {})}
        info = {
            "step": run.step, "rollout": run.rollout, "update": run.update, "bests": self.bests,
            "began": run.began.isoformat(), "seconds": time.perf_counter() - run.started, "processes": run.accelerator.num_processes,
            "compute": str(run.compute).removeprefix("torch."),
            "rollout_log": run.rollouts_file.length(), "fingerprints": self.fingerprints, "config": self.config.model_dump(mode="json"),
        }  # fmt: skip

        def fill(part: Path) -> None:
            run.save(model, run.tokenizer, part / "model", of_model)
            checkpoint_files.save_weights(policy, model, part, trained)
            torch.save({"optimizer": of_optimizer, "scheduler": scheduler.state_dict()}, part / "optimizer.pt")
            torch.save(loop, part / "loop.pt")
            (part / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.metrics))
            (part / "run.json").write_text(json.dumps(info, indent=1))

        if run.accelerator.is_main_process:
            try:
                checkpoint_files.write(run.folder, run.step, fill)
                self._prune(run.step)
            except UserError as problem:  # to stop would lose weights that memory holds
                run.say(f"warning: {problem}. The run goes on; make room before it ends")
        run.accelerator.wait_for_everyone()
        run.last = time.perf_counter()  # writing is no part of a step's speed

    def _prune(self, now: int) -> None:
        """The newest stay, the best ones, and the one that the run is at."""
        stay = {now} | {int(best["step"]) for best in self.bests.values()}
        checkpoint_files.prune(self.run.folder, self.config.training.keep_checkpoints, stay)

    def tell_best(self) -> str:
        name = self.config.training.best_metric
        if name not in self.bests:
            return ""
        step, value = self.bests[name]["step"], self.bests[name]["value"]
        return f"; best {name} {value:.4g} at step {step}: {checkpoint_files.path_of(self.run.folder, step) / 'model'}"
