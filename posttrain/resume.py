"""When a run writes a checkpoint, and how it goes on from one as if it had never stopped. checkpoints.py has the files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from posttrain import checkpoints, folder, models, sharded
from posttrain.errors import UserError


class Checkpoints:
    """Of one run. Nothing is done at all unless training.save_every, training.best_metric or --resume asks for it."""

    def __init__(self, run):
        self.run, self.config = run, run.config
        training = self.config.training
        self.wanted = bool(training.save_every or training.best_metric or self.config.resume)
        self.best: dict[str, float] = {}  # {"step", "value"} of training.best_metric
        self.fingerprints: dict[str, str] = {}
        self.resumed_from = folder.choose(self.config)
        self._info: dict[str, Any] = {}  # run.json of the checkpoint
        self._saved: dict[str, Any] = {}  # its loop.pt
        if self.resumed_from is not None:
            self._refuse_another_run()
        elif self.config.resume:
            run.say(f"--resume: no checkpoint in {run.folder}, starting at step 0")

    # ------------------------------------------------------------ going on

    def _refuse_another_run(self) -> None:
        """Before anything is loaded."""
        self._info = json.loads((self.resumed_from / "run.json").read_text())
        lines = checkpoints.compare(self._info["config"], self.config.model_dump(mode="json"), self.resumed_from)
        before, now = self._info["processes"], self.run.accelerator.num_processes
        if before != now:
            lines.append(f"{before} -> {now} processes: the same steps, rounded otherwise")
        for line in lines:
            self.run.say(line)
        self._saved = checkpoints.read(self.resumed_from / "loop.pt")

    def remember(self, what: str, thing: nn.Module | list | Any) -> None:
        """Note the fingerprint of a model or of the rows; of a resumed run, refuse one that is not what it was."""
        if not self.wanted or not isinstance(thing, (nn.Module, list)):
            return
        of = checkpoints.fingerprint if isinstance(thing, nn.Module) else checkpoints.fingerprint_of_rows
        self.fingerprints[what] = now = of(thing)
        before = self._info.get("fingerprints", {}).get(what, now)
        if before != now:
            raise UserError(
                f"{what}: not what it was when {self.resumed_from} was written (fingerprint {before} then, {now} now). Has its source "
                "changed? Going on would mix two runs: start again with --output.overwrite or in another --output.dir"
            )

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
        checkpoints.load_weights(run.accelerator.unwrap_model(policy), self.resumed_from)
        state = checkpoints.read(self.resumed_from / "optimizer.pt")
        sharded.load_optimizer_state(policy, optimizer, state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        run.step, run.rollout, run.update = (self._info[name] for name in ("step", "rollout", "update"))
        run.started -= self._info["seconds"]
        if self._info["config"]["training"]["best_metric"] == self.config.training.best_metric:
            self.best = self._info["best"]
        run.metrics = folder.metrics_until(run.folder, run.step)
        run.accelerator.wait_for_everyone()
        if run.accelerator.is_main_process:
            folder.write_metrics(run.folder, run.metrics)
        states = self._saved["random"]
        checkpoints.restore_random_states(states[min(run.accelerator.process_index, len(states) - 1)])
        run.say(f"resumed from {self.resumed_from}: {run.step} of {run.num_steps} steps are done")

    # ------------------------------------------------------------ writing

    def due(self) -> bool:
        """Asked after log: every training.save_every steps, and whenever training.best_metric is better than ever."""
        t, row, better = self.config.training, self.run.metrics[-1], False
        if t.best_metric is not None and t.best_metric in row:
            sign = -1 if "loss" in t.best_metric else 1
            better = not self.best or sign * row[t.best_metric] > sign * self.best["value"]
            if better:
                self.best = {"step": self.run.step, "value": row[t.best_metric]}
        return better or (t.save_every is not None and self.run.step % t.save_every == 0)

    def write(self, model: nn.Module, tokenizer, state: dict | None = None, *, save: Callable = models.save) -> None:
        """checkpoints/step_N. state: what the loop is in the middle of, and reads again with saved() or in_flight()."""
        run, (policy, optimizer, scheduler) = self.run, self._prepared
        whole = run.accelerator.unwrap_model(policy)
        gathered = {n: sharded.whole(p).detach() for n, p in whole.named_parameters() if p.requires_grad}
        of_optimizer, of_model = sharded.optimizer_state(policy, optimizer), sharded.state_dict(model)
        loop = {"random": run.gather(checkpoints.random_states()), **checkpoints.plain(state or {})}
        info = {
            "step": run.step, "rollout": run.rollout, "update": run.update, "best": self.best,
            "seconds": time.perf_counter() - run.started, "processes": run.accelerator.num_processes,
            "fingerprints": self.fingerprints, "config": self.config.model_dump(mode="json"),
        }  # fmt: skip

        def fill(part: Path) -> None:
            save(model, tokenizer, part / "model", of_model)
            checkpoints.save_weights(whole, model, part, gathered)
            torch.save({"optimizer": of_optimizer, "scheduler": scheduler.state_dict()}, part / "optimizer.pt")
            torch.save(loop, part / "loop.pt")
            (part / "run.json").write_text(json.dumps(info, indent=1))

        if run.accelerator.is_main_process:
            checkpoints.write(run.folder, run.step, fill)
            checkpoints.prune(run.folder, self.config.training.keep_checkpoints, self.best.get("step"))
        run.accelerator.wait_for_everyone()
        run.last = time.perf_counter()  # writing is no part of a step's speed

    def tell_best(self) -> str:
        if not self.best:
            return ""
        where = checkpoints.path_of(self.run.folder, int(self.best["step"])) / "model"
        return (
            f"; best {self.config.training.best_metric} {self.best['value']:.4g} at step {self.best['step']}: {where}"
        )
