"""The engineering of a run, once: Accelerate, optimiser, schedule, micro-batches, logging, checkpoints.

Nothing here touches a gradient: forward, loss, backward, clip and step stand in the loops.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from tqdm import tqdm

from posttrain.config.trackers import refuse_missing
from posttrain.errors import NonFiniteError, UserError
from posttrain.models import sharded
from posttrain.models.logps import CompletionLogps
from posttrain.models.saving import save as save_model
from posttrain.run import behaviour, ending, folder, launch, preflight, processes, steps, watch
from posttrain.run.checkpoints import Checkpoints
from posttrain.run.lines import METRICS, ROLLOUTS, Lines
from posttrain.run.meter import Meter
from posttrain.run.optimizer import about_warmup, make_optimizer, schedule
from posttrain.run.parallel import Parallel
from posttrain.run.progress import Progress, peak_memory
from posttrain.run.tracking import Trackers
from posttrain.tokens import rendering
from posttrain.tokens.shared import Sharing


@dataclass(frozen=True)
class Result:
    model: nn.Module  # the Hugging Face (or peft) model, trained
    tokenizer: Any
    metrics: list[dict[str, float]]  # what metrics.jsonl holds: one dict per optimiser step (and step 0's scores)
    folder: Path


@contextlib.contextmanager
def left_as_found() -> Iterator[None]:
    """Around a loop: a small model is trained on one thread and a chat template sees the run's date; who called it from
    Python gets theirs back."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        rendering.freeze_date(None)


class Run:
    """One training run: its processes, its folder, its counters."""

    def __init__(self, config: Any):
        self.config, self.training, self.folder = config, config.training, config.folder
        refuse_missing(config.tracking.to)
        self.accelerator, self.compute = launch.start(self.training, config.model)
        self.device, self.parallel = self.accelerator.device, Parallel.of(self.accelerator)
        # What two computations of the same log-prob may differ by: 8-bit products depend on the rows beside them.
        self.rows_are_apart = getattr(config.model, "quantization", "none") != "8bit"
        self.exact = self.compute == torch.float32 and self.rows_are_apart
        set_seed(self.training.seed)
        self.has_start = False  # write_start has written start.part into the run folder
        self.step = 0
        self.rollout, self.update = 0, 0  # RL: which rollout this is, and how many updates it has given
        self.steps_per_epoch: int | None = None  # RL, once known; a stream has no length
        self.metrics: list[dict[str, float]] = []
        self.meter = Meter(self.device)
        self.started = self.last = time.perf_counter()
        self.progress = Progress(self.accelerator.is_main_process)
        self.preflight = preflight.Preflight(config.preflight, self.say)
        self.metrics_file, self.rollouts_file = (Lines(self.folder / name, self.say) for name in (METRICS, ROLLOUTS))
        self.sharing = Sharing(getattr(self.training, "share_prompts", False))
        self._encoded: Any = None
        self._warned: set[str] = set()
        self.checkpoints = Checkpoints(self)
        # A template may write today's date: of a run that goes on tomorrow, it stays that of its start.
        self.began = processes.gather(self.checkpoints.began or datetime.now())[0]
        rendering.freeze_date(self.began)

    def say(self, line: str) -> None:
        """One line, from the main process only, that does not break the progress bar."""
        self.progress.say(line)

    def introduce(self, notes: list[str], encoded: Any, *, given: bool = True) -> None:
        """Say what was loaded and read. Of a stream, what was left out is known, and said, at the end.

        given: the rows bring what is to be learned; else the model answers them."""
        self._encoded = encoded
        for line in [*notes, encoded.summary(), *encoded.remarks]:
            self.say(line)
        if given:
            preflight.rows(self, encoded)
        self.checkpoints.remember("the training data", encoded.items)

    # ------------------------------------------------------------ model, optimiser, schedule

    def share_prompts(self, policy: nn.Module) -> None:
        """training.share_prompts: from now on a prompt of several rows is read once, where this model then computes the
        same. Before the reference is made."""
        if self.sharing.wish is False:
            return
        with sharded.gathered(policy):
            problem = policy.share_prompts()
        if problem is not None and self.sharing.wish is True:
            raise UserError(f"training.share_prompts: {problem}: set it to false, or auto")
        if problem is not None:
            self.say(f"prompts are read with every row: {problem}")
        self.sharing.on = problem is None

    def write_start(self, model: nn.Module, tokenizer: Any) -> str:
        """Where a new adapter will find the full model under it, which is an adapter merged and stands nowhere else."""
        self.has_start = True
        if self.accelerator.is_main_process:
            folder.write_start(self.folder, lambda part: (model.save_pretrained(part), tokenizer.save_pretrained(part)))
        return str((self.folder / "start").resolve())

    def prepare(
        self,
        policy: nn.Module,
        model: nn.Module,
        tokenizer: Any,
        num_steps: int,
        *,
        learning_rates: dict[str, float] | None = None,
        save: Callable = save_model,
    ) -> tuple[nn.Module, Any, Any]:
        """(policy, optimizer, scheduler), the first two prepared by Accelerate; the scheduler steps once per optimiser
        step.

        policy: what is trained, model: the Hugging Face (or peft) model in it, which `save` writes.
        learning_rates: of the parameters whose names begin so, where it is not training.learning_rate."""
        self.model, self.tokenizer, self.save, self.num_steps = model, tokenizer, save, num_steps
        for module in policy.modules():
            if isinstance(module, CompletionLogps):
                module.keep_bytes = self.training.logit_budget_mb * 2**20
        self.checkpoints.remember("the model", policy)
        if self.accelerator.is_main_process:
            folder.clear(self.config, self.checkpoints.resumed_from, self.has_start)  # and locked, until finish
        self.accelerator.wait_for_everyone()
        small = sum(p.numel() for p in policy.parameters()) < 1_000_000
        if self.device.type == "cpu" and (threads := self.training.cpu_threads or (1 if small else None)):
            torch.set_num_threads(threads)
        optimizer = make_optimizer(policy, self.training, self.device, learning_rates)
        if sharded.is_sharded(policy):  # by parallel.spread, before it came here: it needs no other wrapper
            optimizer = self.accelerator.prepare_optimizer(optimizer)
        else:
            policy, optimizer = self.accelerator.prepare(policy, optimizer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda k: schedule(k, num_steps, self.training.warmup_steps, self.training.schedule)
        )
        self.policy, self.optimizer = policy, optimizer
        trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        total = sum(p.numel() for p in policy.parameters())
        for line in about_warmup(num_steps, self.training.warmup_steps, self.training.learning_rate):
            self.say(line)
        self.say(
            f"training {trainable:,} of {total:,} parameters for {num_steps:,} step{'s' * (num_steps != 1)} in "
            f"{str(self.compute).removeprefix('torch.')} on {self.accelerator.num_processes} x {self.device.type}"
        )
        self.checkpoints.restore(policy, optimizer, scheduler)
        self.trackers = Trackers(self.config, self.accelerator.is_main_process, self.say, self.step)
        self.progress.begin(self.config.method, self.step, num_steps)
        self.last = time.perf_counter()
        return policy, optimizer, scheduler

    # ------------------------------------------------------------ one optimiser step = a list of micro-batches

    def steps_for(self, items: Any) -> int:
        """training.max_steps, or the steps that `epochs` passes over the rows take (a short last window is a step)."""
        return self.training.max_steps or self.training.epochs * math.ceil(len(items) / self.training.batch_size)

    def windows(
        self, items: Any, pack_to: int | None = None, of_step: Callable[[list], list] | None = None
    ) -> Iterator[list[list]]:
        """One optimiser step after the other, each a list of this process's micro-batches. A short last window is a
        step.

        pack_to: lay each micro-batch's rows end to end in packed rows of that many tokens.
        of_step: what is made of the rows of a whole step (the same on every process) before they are dealt out."""
        # a resumed run passes over what it had done: which rows that were, (seed, epoch) says
        step, epoch, start = 0, 0, self.step
        while step < self.num_steps:
            for rows in steps.batched(steps.in_order(items, self.training.seed, epoch), self.training.batch_size):
                if step == self.num_steps:
                    return
                if step == start:
                    self.checkpoints.compare_stream()
                self.checkpoints.read_on(items, rows)
                if step >= start:
                    yield self.micro_batches(rows if of_step is None else of_step(rows), pack_to)
                step += 1
            epoch += 1

    def micro_batches(self, rows: list, pack_to: int | None = None) -> list[list]:
        """The rows of one step -> this process's micro-batches."""
        a = self.accelerator
        return steps.micro_batches(rows, a.process_index, a.num_processes, self.training.micro_batch_size, pack_to)

    def slices(self, items: list, label: str | None = None) -> Iterator[list]:
        """Micro-batches over all items once (evaluation, the reference's log-probs), with a bar if labelled."""
        yield from tqdm(
            self.micro_batches(items), desc=label, leave=False, disable=label is None or not self.progress.bars
        )

    # ------------------------------------------------------------ the same, for RL: prompts and minibatches of a
    # rollout

    def steps_for_prompts(self, prompts: Any, rl: Any) -> int:
        """training.max_steps, or what `epochs` passes over the prompts take, in optimiser steps."""
        if isinstance(prompts, list) and not rl.dynamic_sampling:  # else a step takes as many prompts as it needs
            rollouts = max(1, len(prompts) // rl.prompts_per_step)
            self.steps_per_epoch = rollouts * rl.minibatches * rl.inner_epochs
        return self.training.max_steps or self.training.epochs * self.steps_per_epoch

    def prompt_windows(self, prompts: Any, per_step: int) -> Iterator[tuple[int, list, list[int]]]:
        """Until the last step: (number of the rollout, its prompts, which of them are this process's own). A group
        stays on one process. A resumed run begins with the rollout that it was in."""
        number, epoch, count = 0, 0, self.accelerator.num_processes
        if isinstance(prompts, list) and len(prompts) < per_step:
            self.say(f"only {len(prompts)} prompts: a rollout has {len(prompts)}, not prompts_per_step = {per_step}")
            per_step = len(prompts)
        if per_step < count:
            raise UserError(
                f"{per_step} prompts per rollout for {count} processes: give each at least one ({self.config.method}.prompts_per_step)"
            )
        while True:
            rollouts = 0
            for asked in steps.batched(steps.in_order(prompts, self.training.seed, epoch), per_step):
                if self.step >= self.num_steps:
                    return
                if len(asked) == per_step:  # a short last rollout is left for the next epoch's order
                    self.checkpoints.read_on(prompts, asked)
                    if number == self.rollout:
                        self.checkpoints.compare_stream()
                    if number >= self.rollout:
                        self.rollout = number
                        yield number, asked, list(range(self.accelerator.process_index, per_step, count))
                        self.update = 0
                    number, rollouts = number + 1, rollouts + 1
            if not rollouts:
                raise UserError(f"the stream has fewer prompts than {self.config.method}.prompts_per_step = {per_step}")
            epoch += 1

    def minibatches(self, answers: list, own: list[int], num_prompts: int, rl: Any) -> Iterator[list[list]]:
        """inner_epochs × minibatches optimiser steps over one rollout: each a list of this process's micro-batches."""
        rows, seed = num_prompts * rl.group_size, self.training.seed
        done = self.update  # of a rollout in the middle of which the run was resumed
        updates = steps.minibatches(rows, rl.minibatches, rl.inner_epochs, seed, self.rollout)
        for count, picked in enumerate(updates, start=1):
            if self.step >= self.num_steps:
                return
            if count > done:
                self.update = count
                share, most = steps.own_share(picked, own, rl.group_size, self.accelerator.num_processes)
                if self.sharing.on:
                    share = steps.group_by_group(share, rl.group_size, lambda i: len(answers[i]))
                rows, size = [answers[i] for i in share], self.training.micro_batch_size
                yield steps.cut(rows, most, size, answers[0], by_length=not self.sharing.on)

    def rollout_state(self, answers: list, own: list[int], metrics: dict[str, tuple]) -> dict[str, Any]:
        """What a checkpoint in the middle of a rollout needs: {prompt: its answers} and metrics, of all processes."""
        size = len(answers) // len(own)
        by_prompt = {prompt: answers[i * size : (i + 1) * size] for i, prompt in enumerate(own)}
        sums = {name: tuple(self.sum_over_processes(float(x)) for x in pair) for name, pair in metrics.items()}
        return {"answers": processes.merge(by_prompt), "metrics": sums}

    # ------------------------------------------------------------ processes

    def sum_over_processes(self, value: float) -> float:
        return processes.add_up(value, self.device)

    def gather(self, value: Any) -> list:
        """Every process's value, in their order."""
        return processes.gather(value)

    def no_sync_unless_last(self, policy: nn.Module, index: int, window: Sequence) -> contextlib.AbstractContextManager:
        """DDP sends gradients around only on the last micro-batch of the step. FSDP2 after each: the sum is the same,
        and gradients that wait for the last one would wait whole, on every process (4 bytes a parameter)."""
        if hasattr(policy, "set_requires_gradient_sync") or index == len(window) - 1:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(policy)

    # ------------------------------------------------------------ counting and telling

    def add(
        self,
        loss: Tensor,
        metrics: dict[str, tuple[Any, Any]],
        *,
        terms: dict[str, Tensor] | None = None,
        tokens: int = 0,
    ) -> None:
        """Collect what a micro-batch says: its loss and the terms of it (they sum to the step's), its (sum, count)
        metrics."""
        self.meter.add({"loss": loss} | (terms or {}), metrics, tokens)

    def write_answers(self, lines: dict[int, dict]) -> None:
        """Into rollouts.jsonl: {number of the answer: its line}, of all processes."""
        lines = processes.merge(lines)
        if self.accelerator.is_main_process:
            self.rollouts_file.add(json.dumps(lines[number], ensure_ascii=False) for number in sorted(lines))

    def check_update(self, grad_norm: Tensor | float) -> None:
        """Before the optimiser step: a loss or gradient norm that is NaN or infinite stops the run; the first update is
        checked in full (preflight)."""
        loss = self.meter.term("loss")
        norm = torch.as_tensor(sharded.whole(grad_norm), dtype=torch.float32, device=self.device)
        if not torch.isfinite(torch.stack([loss, norm])).all():
            raise NonFiniteError(
                f"step {self.step + 1}: the loss is {loss.item()} and the gradient norm {norm.item()}: stopped before the update, the "
                f"weights are those of the step before and nothing was saved. {preflight.why_not_finite(self, self.policy)}"
            )
        if self.step == 0:
            preflight.sampled_alike(self)
            preflight.gradients(self, self.policy)
            preflight.stop_token(self, self.model, self.tokenizer)
        self._learning_rate = self.optimizer.param_groups[0]["lr"]

    def log(self, extra: dict[str, Any], of_rollout: dict[str, tuple[Any, Any]] | None = None) -> dict[str, float]:
        """End of an optimiser step: reduce over processes, write one line of metrics.jsonl, move the bar.

        extra: numbers that are the same on every process; of_rollout: (sum, count) of what this step's rollout was
        like."""
        now = time.perf_counter()
        self.meter.add({}, of_rollout or {})
        self.step += 1
        of_step, tokens = self.meter.row(self.accelerator)
        row = {"step": self.step} | of_step | {name: float(sharded.whole(value)) for name, value in extra.items()}
        row |= {"learning_rate": self._learning_rate, "tokens_per_second": tokens / (now - self.last)}
        row |= {"memory_gib": peak_memory(self.device), "seconds": now - self.started}
        self.last = now
        self.tell(row)
        if self.step == 1:
            self.preflight.report()
        self.progress.show(row)
        for name, lesson in watch.lessons(self.of_steps).items():
            if name not in self._warned:
                self._warned.add(name)
                self.say(f"warning, step {self.step}: {lesson}")
        return row

    def tell(self, row: dict[str, float]) -> None:
        """One line of metrics.jsonl."""
        self.metrics.append(row)
        if self.accelerator.is_main_process:
            self.metrics_file.add([json.dumps(row)])
        self.trackers.log(row)
        self.progress.note(row)

    @property
    def of_steps(self) -> list[dict[str, float]]:
        """The rows of optimiser steps: without that of step 0, which has the scores of evaluation.suites alone."""
        return self.metrics[1:] if self.metrics and self.metrics[0]["step"] == 0 else self.metrics

    def evaluate_now(self) -> bool:
        """True every training.eval_every steps and at the end (asked after the update, before log)."""
        step = self.step + 1
        return self.training.eval_every is not None and (step % self.training.eval_every == 0 or step == self.num_steps)

    # ------------------------------------------------------------ the end

    def finish(self, samples: list[tuple[str, str, str]] | None = None, own: Sequence[float] = ()) -> Result:
        """Write the model, the curves and the samples. `model/` appears last and whole: it means "finished".

        own: log-prob per token of the model's own answers among the samples, before and after."""
        self.progress.end()
        of_model, shared = sharded.state_dict(self.model), self.sharing.told(self.sum_over_processes)
        if self.accelerator.is_main_process:
            ending.write(self, samples, of_model, own)
            if shared is not None:
                self.say(shared)
            ending.tell(self, self._encoded)
            looked_at = (self.config.method, self.of_steps, samples or [], own)
            if (line := behaviour.told(*looked_at)) is not None:
                self.say(line)
            if (problem := behaviour.remark(*looked_at)) is not None:
                self.say(f"warning: {problem}")
        self.trackers.end()
        self.accelerator.wait_for_everyone()
        return Result(self.model, self.tokenizer, self.metrics, self.folder)
