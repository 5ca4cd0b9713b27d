"""The engineering of a run, once: Accelerate, optimiser, schedule, micro-batches, logging, checkpoints.

Nothing here touches a gradient: forward, loss, backward, clip and step stand in the loops.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import Tensor, nn
from tqdm import tqdm

from posttrain.config.trackers import refuse_missing
from posttrain.errors import NonFiniteError, UserError
from posttrain.models import loading as models
from posttrain.models import sharded
from posttrain.run import folder, preflight, steps, watch
from posttrain.run.checkpoints import Checkpoints
from posttrain.run.curves import plot_curves
from posttrain.run.launch import refuse_launchers
from posttrain.run.optimizer import make_optimizer, schedule
from posttrain.run.progress import Progress
from posttrain.run.samples import write_samples
from posttrain.run.tracking import Trackers
from posttrain.tokens.batch import Packed, pack


@dataclass(frozen=True)
class Result:
    model: nn.Module  # the Hugging Face (or peft) model, trained
    tokenizer: Any
    metrics: list[dict[str, float]]  # what metrics.jsonl holds: one dict per optimiser step
    folder: Path


class Run:
    """One training run: its processes, its folder, its counters."""

    def __init__(self, config):
        self.config, self.training, self.folder = config, config.training, config.folder
        refuse_missing(config.tracking.to)
        device = self.training.device
        for kind, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
            if device == kind and not there:
                raise UserError(f"training.device is {kind}, but torch finds none here: use auto or cpu")
        on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        self.compute = compute_dtype(config.model.dtype, on_cpu)
        refuse_launchers(on_cpu)
        # Accelerate keeps one state per Python process: a second run in a notebook may want another precision or device.
        AcceleratorState._reset_state(reset_partial_state="WORLD_SIZE" not in os.environ)
        try:
            self.accelerator = Accelerator(
                cpu=on_cpu,
                mixed_precision="bf16" if self.compute == torch.bfloat16 else "no",
                # the buffers of these models are constants (rotary frequencies): nothing to send around in every forward pass
                kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            )
        except ValueError as problem:
            raise UserError(f"Accelerate cannot start (WORLD_SIZE={os.environ.get('WORLD_SIZE')}): {problem}") from None
        self.device = self.accelerator.device
        # How far two computations of the same log-prob may differ: 8-bit products depend on the rows beside them.
        exact = self.compute == torch.float32 and getattr(config.model, "quantization", "none") != "8bit"
        self.tolerance = 1e-4 if exact else 0.05
        if int(os.environ.get("WORLD_SIZE", 1)) != self.accelerator.num_processes:
            raise UserError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but Accelerate sees {self.accelerator.num_processes} process(es): "
                "each would train alone and overwrite the others. Start with torchrun --standalone --nproc_per_node N -m loops.…"
            )
        set_seed(self.training.seed)
        self._encoded: Any = None
        self.has_start = False  # models.base_folder has written start.part into the run folder
        self.step = 0
        self.metrics: list[dict[str, float]] = []
        self._sums: dict[str, list[Tensor]] = {}
        self._loss: list[Tensor] = []
        self._tokens = 0
        self.rollout, self.update = 0, 0  # RL: which rollout this is, and how many updates it has given
        self.started = self.last = time.perf_counter()
        self.progress = Progress(self.accelerator.is_main_process)
        self.preflight = preflight.Preflight(config.preflight, self.say)
        self._warned: set[str] = set()
        self.checkpoints = Checkpoints(self)

    def say(self, line: str) -> None:
        """One line, from the main process only, that does not break the progress bar."""
        self.progress.say(line)

    def introduce(self, notes: list[str], encoded: Any) -> None:
        """Say what was loaded and read. Of a stream, what was left out is known, and said, at the end."""
        self._encoded = encoded
        for line in [*notes, encoded.summary()]:
            self.say(line)
        preflight.rows(self, encoded)
        self.checkpoints.remember("the training data", encoded.items)

    # ------------------------------------------------------------ optimiser and schedule

    def prepare(self, policy: nn.Module, num_steps: int, learning_rates: dict[str, float] | None = None):
        """(policy, optimizer, scheduler), the first two prepared by Accelerate; the scheduler steps once per optimiser step.

        learning_rates: of the parameters whose names begin so, where it is not training.learning_rate."""
        self.checkpoints.remember("the model", policy)
        if self.accelerator.is_main_process:
            folder.clear(self.config, self.checkpoints.resumed_from, self.has_start)  # and locked, until finish
        self.accelerator.wait_for_everyone()
        small = sum(p.numel() for p in policy.parameters()) < 1_000_000
        if self.device.type == "cpu" and (threads := self.training.cpu_threads or (1 if small else None)):
            torch.set_num_threads(threads)
        optimizer = make_optimizer(policy, self.training, self.device, learning_rates)
        if sharded.is_sharded(policy):  # by fully_shard, before it came here: it needs no other wrapper
            optimizer = self.accelerator.prepare(optimizer)
        else:
            policy, optimizer = self.accelerator.prepare(policy, optimizer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda k: schedule(k, num_steps, self.training.warmup_steps, self.training.schedule)
        )
        trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        total = sum(p.numel() for p in policy.parameters())
        self.say(
            f"training {trainable:,} of {total:,} parameters for {num_steps:,} steps in "
            f"{str(self.compute).removeprefix('torch.')} on {self.accelerator.num_processes} x {self.device.type}"
        )
        self.num_steps = num_steps
        self.checkpoints.restore(policy, optimizer, scheduler)
        self.trackers = Trackers(self.config, self.accelerator.is_main_process, self.say, self.step)
        self.progress.begin(self.config.method, self.step, num_steps)
        self.last = time.perf_counter()
        return policy, optimizer, scheduler

    # ------------------------------------------------------------ one optimiser step = a list of micro-batches

    def steps_for(self, items: Any) -> int:
        """training.max_steps, or the steps that `epochs` passes over the rows take (a short last window is a step)."""
        return self.training.max_steps or self.training.epochs * math.ceil(len(items) / self.training.batch_size)

    def windows(self, items: Any, pack_to: int | None = None) -> Iterator[list[list]]:
        """One optimiser step after the other, each a list of this process's micro-batches. A short last window is a step.

        pack_to: lay each micro-batch's rows end to end in packed rows of that many tokens."""
        step, epoch, start = (
            0,
            0,
            self.step,
        )  # a resumed run passes over what it had done: which rows, says (seed, epoch)
        while step < self.num_steps:
            for rows in steps.batched(steps.in_order(items, self.training.seed, epoch), self.training.batch_size):
                if step == self.num_steps:
                    return
                if step == start:
                    self.checkpoints.compare_stream()
                self.checkpoints.read_on(items, rows)
                if step >= start:
                    yield self.micro_batches(rows, pack_to)
                step += 1
            epoch += 1

    def micro_batches(self, rows: list, pack_to: int | None = None) -> list[list]:
        """The rows of one step (the same list on every process) -> this process's micro-batches."""
        processes, size = self.accelerator.num_processes, self.training.micro_batch_size
        shares, filler = steps.shares(rows, processes), rows[0]
        if pack_to is not None:
            shares, filler = [pack(share, pack_to) for share in shares], Packed((rows[0],))
        return steps.cut(shares[self.accelerator.process_index], max(map(len, shares)), size, filler)

    # ------------------------------------------------------------ the same, for RL: prompts and minibatches of a rollout

    def steps_for_prompts(self, prompts: Any, grpo) -> int:
        """training.max_steps, or what `epochs` passes over the prompts take, in optimiser steps."""
        if self.training.max_steps:
            return self.training.max_steps
        rollouts = self.training.epochs * max(1, len(prompts) // grpo.prompts_per_step)
        return rollouts * grpo.minibatches * grpo.inner_epochs

    def prompt_windows(self, prompts: Any, per_step: int) -> Iterator[tuple[int, list, list[int]]]:
        """Until the last step: (number of the rollout, its prompts, which of them are this process's). A group stays on one
        process. A resumed run begins with the rollout that it was in."""
        number, epoch, processes = 0, 0, self.accelerator.num_processes
        if isinstance(prompts, list) and len(prompts) < per_step:
            self.say(f"only {len(prompts)} prompts: a rollout has {len(prompts)}, not prompts_per_step = {per_step}")
            per_step = len(prompts)
        if per_step < processes:
            raise UserError(
                f"{per_step} prompts per rollout for {processes} processes: give each at least one ({self.config.method}.prompts_per_step)"
            )
        while True:
            rollouts = 0
            for chosen in steps.batched(steps.in_order(prompts, self.training.seed, epoch), per_step):
                if self.step >= self.num_steps:
                    return
                if len(chosen) == per_step:  # a short last rollout is left for the next epoch's order
                    self.checkpoints.read_on(prompts, chosen)
                    if number == self.rollout:
                        self.checkpoints.compare_stream()
                    if number >= self.rollout:
                        self.rollout = number
                        yield number, chosen, list(range(self.accelerator.process_index, per_step, processes))
                        self.update = 0
                    number, rollouts = number + 1, rollouts + 1
            if not rollouts:
                raise UserError(f"the stream has fewer prompts than {self.config.method}.prompts_per_step = {per_step}")
            epoch += 1

    def minibatches(self, answers: list, mine: list[int], num_prompts: int, grpo, rollout: int) -> Iterator[list[list]]:
        """inner_epochs × minibatches optimiser steps over one rollout: each a list of this process's micro-batches.

        Which answer falls into which minibatch is drawn over the whole rollout, so it is the same for any number of processes."""
        place = {
            prompt * grpo.group_size + k: i * grpo.group_size + k
            for i, prompt in enumerate(mine)
            for k in range(grpo.group_size)
        }
        rows, processes = num_prompts * grpo.group_size, self.accelerator.num_processes
        done, count = self.update, 0  # of a rollout in the middle of which the run was resumed
        for epoch in range(grpo.inner_epochs):
            order = steps.epoch_order(rows, self.training.seed + 1, rollout * grpo.inner_epochs + epoch)
            for picked in steps.batched(iter(order), math.ceil(rows / grpo.minibatches)):
                if self.step >= self.num_steps:
                    return
                count += 1
                if count <= done:
                    continue
                self.update = count
                owners = [row // grpo.group_size % processes for row in picked]
                most = max(owners.count(p) for p in range(processes))
                share = [answers[place[row]] for row in picked if row in place]
                yield steps.cut(share, most, self.training.micro_batch_size, answers[0])

    def slices(self, items: list, label: str | None = None) -> Iterator[list]:
        """Micro-batches over all items once (evaluation, the reference's log-probs), with a bar if labelled."""
        micro = self.micro_batches(items)
        yield from tqdm(micro, desc=label, leave=False, disable=label is None or not self.progress.bars)

    def gather(self, value: Any) -> list:
        """Every process's value, in their order."""
        if self.accelerator.num_processes == 1:
            return [value]
        parts: list = [None] * self.accelerator.num_processes
        torch.distributed.all_gather_object(parts, value)
        return parts

    def merge(self, mapping: dict) -> dict:
        """The union of every process's dict."""
        return {k: v for part in self.gather(mapping) for k, v in part.items()}

    def rollout_state(self, answers: list, mine: list[int], metrics: dict[str, tuple]) -> dict[str, Any]:
        """What a checkpoint in the middle of a rollout needs: {prompt: its answers} and the metrics, of all processes."""
        size = len(answers) // len(mine)
        own = {prompt: answers[i * size : (i + 1) * size] for i, prompt in enumerate(mine)}
        sums = {name: tuple(self.sum_over_processes(float(x)) for x in pair) for name, pair in metrics.items()}
        return {"answers": self.merge(own), "metrics": sums}

    def sum_over_processes(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        return self.accelerator.reduce(torch.tensor(float(value), device=self.device), "sum").item()

    def no_sync_unless_last(self, policy: nn.Module, index: int, window: Sequence):
        """DDP and FSDP send gradients around only on the last micro-batch of the step."""
        if hasattr(policy, "set_requires_gradient_sync"):
            policy.set_requires_gradient_sync(index == len(window) - 1)
            return contextlib.nullcontext()
        return contextlib.nullcontext() if index == len(window) - 1 else self.accelerator.no_sync(policy)

    # ------------------------------------------------------------ counting and telling

    def add(self, loss: Tensor | None, metrics: dict[str, tuple[Any, Any]], tokens: int = 0) -> None:
        """Collect a micro-batch's loss (they sum to the step's) and its (sum, count) metrics."""
        if loss is not None:
            self._loss.append(loss.detach())
        for name, pair in metrics.items():
            self._sums.setdefault(name, []).append(
                torch.stack([torch.as_tensor(x, dtype=torch.float32, device=self.device).detach() for x in pair])
            )
        self._tokens += tokens

    def count_so_far(self, name: str) -> float:
        """The count of a metric in this step, before it is logged."""
        return self.sum_over_processes(sum(float(count) for _, count in self._sums.get(name, [])))

    def refuse_non_finite(self, grad_norm: Tensor | float) -> None:
        """Stop, before the optimiser step, when the loss or the gradient norm is NaN or infinite."""
        values = [
            sum(self._loss, torch.zeros((), device=self.device)),
            *(t.sum(0)[0] for t in map(torch.stack, self._sums.values())),
        ]
        norm = torch.as_tensor(sharded.whole(grad_norm), dtype=torch.float32, device=self.device)
        if torch.isfinite(torch.stack([values[0], norm])).all():
            return
        raise NonFiniteError(
            f"step {self.step + 1}: the loss is {values[0].item()} and the gradient norm {norm.item()}: stopped before the update, the weights "
            "are those of the step before and nothing was saved. Lower training.learning_rate, or look at the rows of this step"
        )

    def log(self, extra: dict[str, float]) -> dict[str, float]:
        """End of an optimiser step: reduce over processes, write one line of metrics.jsonl, move the bar."""
        now = time.perf_counter()
        names = sorted(self._sums)
        flat = [
            sum(self._loss, torch.zeros((), device=self.device)),
            torch.tensor(float(self._tokens), device=self.device),
        ]
        flat += [x for name in names for x in torch.stack(self._sums[name]).sum(0)]
        loss, tokens, *rest = self.accelerator.reduce(torch.stack(flat), "sum").tolist()
        self.step += 1
        row = {"step": self.step, "loss": loss}
        row |= {n: rest[2 * i] / rest[2 * i + 1] for i, n in enumerate(names) if rest[2 * i + 1]}
        row |= {name: float(sharded.whole(value)) for name, value in extra.items()}
        seconds = now - self.last
        row |= {"tokens_per_second": tokens / seconds, "memory_gib": self._peak_memory(), "seconds": now - self.started}
        self._sums, self._loss, self._tokens, self.last = {}, [], 0, now
        self.metrics.append(row)
        if self.accelerator.is_main_process:
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
        self.trackers.log(row)
        if self.step == 1:
            self.preflight.report()
        self.progress.show(row)
        for name, lesson in watch.lessons(self.metrics).items():
            if name not in self._warned:
                self._warned.add(name)
                self.say(f"warning, step {self.step}: {lesson}")
        return row

    def _peak_memory(self) -> float:
        """The most that this (the main) process has held so far, in GiB: of the GPU where there is one, else of RAM."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        try:
            import resource
        except ImportError:  # Windows
            return float("nan")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)

    def evaluate_now(self) -> bool:
        """True every training.eval_every steps and at the end (asked after the update, before log)."""
        step = self.step + 1
        return self.training.eval_every is not None and (step % self.training.eval_every == 0 or step == self.num_steps)

    # ------------------------------------------------------------ the end

    def finish(
        self,
        model: nn.Module,
        tokenizer,
        samples: list[tuple[str, str, str]] | None = None,
        save: Callable = models.save,
    ) -> Result:
        """Write the model, the curves and the samples. `model/` appears last and whole: its presence means "finished"."""
        self.progress.end()
        of_model = sharded.state_dict(model)
        if self.accelerator.is_main_process:
            if samples:
                write_samples(self.folder / "samples.md", samples, self.config.method)
            plot_curves(self.folder / "curves.png", self.metrics, self.config.method)
            save(model, tokenizer, self.folder / "model.part", of_model)
            folder.put_model(self.folder)
            if self._encoded is not None and not isinstance(self._encoded.items, list):
                self.say(self._encoded.summary())
            seconds = time.perf_counter() - self.started
            self.say(f"{self.config.method}: {self.step} steps in {seconds:.1f} s{self.checkpoints.tell_best()}")
            written = sorted(p.name + "/" * p.is_dir() for p in self.folder.iterdir())
            folder.unlock(self.folder)
            self.say(f"wrote {self.folder}/: {', '.join(written)}")
        self.trackers.end()
        self.accelerator.wait_for_everyone()
        return Result(model, tokenizer, self.metrics, self.folder)


def compute_dtype(asked: str, on_cpu: bool) -> torch.dtype:
    """model.dtype -> float32 or bfloat16; auto takes bf16 only on a GPU that has it in hardware."""
    if asked == "auto":
        native = not on_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    return getattr(torch, asked)
