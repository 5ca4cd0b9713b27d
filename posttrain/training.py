"""The engineering of a run, once: Accelerate, optimiser, schedule, micro-batches, logging, the run folder.

Nothing here touches a gradient: forward, loss, backward, clip and step stand in the loops.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, nn
from tqdm import tqdm

from posttrain import config as configs
from posttrain import models, report, windows
from posttrain.batch import Packed, pack
from posttrain.errors import NonFiniteError, UserError
from posttrain.optimizer import make_optimizer, schedule


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
        device = self.training.device
        for kind, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
            if device == kind and not there:
                raise UserError(f"training.device is {kind}, but torch finds none here: use auto or cpu")
        on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        self.compute = compute_dtype(config.model.dtype, on_cpu)
        # Accelerate keeps one state per Python process: a second run in a notebook may want another precision or device.
        AcceleratorState._reset_state(reset_partial_state="WORLD_SIZE" not in os.environ)
        try:
            self.accelerator = Accelerator(
                cpu=on_cpu, mixed_precision="bf16" if self.compute == torch.bfloat16 else "no"
            )
        except ValueError as problem:
            raise UserError(f"Accelerate cannot start (WORLD_SIZE={os.environ.get('WORLD_SIZE')}): {problem}") from None
        self.device = self.accelerator.device
        # How far two computations of the same log-prob may differ: 8-bit products depend on the rows beside them.
        exact = self.compute == torch.float32 and config.model.quantization != "8bit"
        self.tolerance = 1e-4 if exact else 0.05
        if int(os.environ.get("WORLD_SIZE", 1)) != self.accelerator.num_processes:
            raise UserError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but Accelerate sees {self.accelerator.num_processes} process(es): "
                "each would train alone and overwrite the others. Start with torchrun --standalone --nproc_per_node N -m loops.…"
            )
        set_seed(self.training.seed)
        self.step = 0
        self.metrics: list[dict[str, float]] = []
        self._sums: dict[str, list[Tensor]] = {}
        self._loss: list[Tensor] = []
        self._tokens = 0
        self._started = self._last = time.perf_counter()
        self._bar: tqdm | None = None
        self._shows_bars = self.accelerator.is_main_process and sys.stderr.isatty() and "CI" not in os.environ
        self._refuse_folder()

    # ------------------------------------------------------------ the folder

    def _refuse_folder(self) -> None:
        if (self.folder / "model").exists() and not self.config.output.overwrite:
            raise UserError(
                f"{self.folder} holds a finished run: give --output.overwrite to replace it, or another --output.dir"
            )
        sources = {
            "model.name": self.config.model.name,
            "model.adapter_path": self.config.model.adapter_path,
            "model.reference": getattr(self.config.model, "reference", None),
            "ppo.reward_model": getattr(getattr(self.config, "ppo", None), "reward_model", None),
        }
        names = self.config.data.name
        for key, source in [
            *sources.items(),
            *(("data.name", n) for n in ([names] if isinstance(names, str) else names or [])),
        ]:
            if source and Path(source).exists() and Path(source).resolve().is_relative_to(self.folder.resolve()):
                raise UserError(
                    f"{key} '{source}' lies in the run folder {self.folder}, which this run overwrites: give another --output.dir"
                )

    def _open_folder(self) -> None:
        """Only now, when model and data have loaded, is an older run in the folder removed; and only what a run writes."""
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in ("model", "model.part", "start", "metrics.jsonl", "curves.png", "samples.md", "config.yaml"):
                path = self.folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            if (self.folder / "start.part").exists():
                os.replace(self.folder / "start.part", self.folder / "start")
            configs.save(self.config, self.folder / "config.yaml")
        self.accelerator.wait_for_everyone()

    def say(self, line: str) -> None:
        """One line, from the main process only, that does not break the progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write(line, file=sys.stderr)

    def introduce(self, notes: list[str], encoded: Any) -> None:
        """Say what was loaded and read. Of a stream, what was left out is known, and said, at the end."""
        self._encoded = encoded
        for line in [*notes, encoded.summary()]:
            self.say(line)

    # ------------------------------------------------------------ optimiser and schedule

    def prepare(self, policy: nn.Module, num_steps: int, learning_rates: dict[str, float] | None = None):
        """(policy, optimizer, scheduler), the first two prepared by Accelerate; the scheduler steps once per optimiser step.

        learning_rates: of the parameters whose names begin so, where it is not training.learning_rate."""
        self._open_folder()
        small = sum(p.numel() for p in policy.parameters()) < 1_000_000
        if self.device.type == "cpu" and (threads := self.training.cpu_threads or (1 if small else None)):
            torch.set_num_threads(threads)
        optimizer = make_optimizer(policy, self.training, self.device, learning_rates)
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
        self._bar = tqdm(
            total=num_steps,
            desc=self.config.method,
            unit="step",
            disable=not self._shows_bars,
        )
        self.num_steps, self._last = num_steps, time.perf_counter()
        return policy, optimizer, scheduler

    # ------------------------------------------------------------ one optimiser step = a list of micro-batches

    def steps_for(self, items: Any) -> int:
        """training.max_steps, or the steps that `epochs` passes over the rows take (a short last window is a step)."""
        return self.training.max_steps or self.training.epochs * math.ceil(len(items) / self.training.batch_size)

    def windows(self, items: Any, pack_to: int | None = None) -> Iterator[list[list]]:
        """One optimiser step after the other, each a list of this process's micro-batches. A short last window is a step.

        pack_to: lay each micro-batch's rows end to end in packed rows of that many tokens."""
        step, epoch = 0, 0
        while step < self.num_steps:
            for rows in windows.batched(windows.in_order(items, self.training.seed, epoch), self.training.batch_size):
                if step == self.num_steps:
                    return
                yield self.micro_batches(rows, pack_to)
                step += 1
            epoch += 1

    def micro_batches(self, rows: list, pack_to: int | None = None) -> list[list]:
        """The rows of one step (the same list on every process) -> this process's micro-batches."""
        processes, size = self.accelerator.num_processes, self.training.micro_batch_size
        shares, filler = windows.shares(rows, processes), rows[0]
        if pack_to is not None:
            shares, filler = [pack(share, pack_to) for share in shares], Packed((rows[0],))
        return windows.cut(shares[self.accelerator.process_index], max(map(len, shares)), size, filler)

    # ------------------------------------------------------------ the same, for RL: prompts and minibatches of a rollout

    def steps_for_prompts(self, prompts: Any, grpo) -> int:
        """training.max_steps, or what `epochs` passes over the prompts take, in optimiser steps."""
        if self.training.max_steps:
            return self.training.max_steps
        rollouts = self.training.epochs * max(1, len(prompts) // grpo.prompts_per_step)
        return rollouts * grpo.minibatches * grpo.inner_epochs

    def prompt_windows(self, prompts: Any, per_step: int) -> Iterator[tuple[list, list[int]]]:
        """Until the last step: (the prompts of one rollout, which of them are this process's). A group stays on one process."""
        epoch, processes = 0, self.accelerator.num_processes
        if isinstance(prompts, list) and len(prompts) < per_step:
            self.say(f"only {len(prompts)} prompts: a rollout has {len(prompts)}, not prompts_per_step = {per_step}")
            per_step = len(prompts)
        if per_step < processes:
            raise UserError(
                f"{per_step} prompts per rollout for {processes} processes: give each at least one ({self.config.method}.prompts_per_step)"
            )
        while True:
            rollouts = 0
            for chosen in windows.batched(windows.in_order(prompts, self.training.seed, epoch), per_step):
                if self.step >= self.num_steps:
                    return
                if len(chosen) == per_step:  # a short last rollout is left for the next epoch's order
                    yield chosen, list(range(self.accelerator.process_index, per_step, processes))
                    rollouts += 1
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
        for epoch in range(grpo.inner_epochs):
            order = windows.epoch_order(rows, self.training.seed + 1, rollout * grpo.inner_epochs + epoch)
            for picked in windows.batched(iter(order), math.ceil(rows / grpo.minibatches)):
                if self.step >= self.num_steps:
                    return
                owners = [row // grpo.group_size % processes for row in picked]
                most = max(owners.count(p) for p in range(processes))
                share = [answers[place[row]] for row in picked if row in place]
                yield windows.cut(share, most, self.training.micro_batch_size, answers[0])

    def slices(self, items: list, label: str | None = None) -> Iterator[list]:
        """Micro-batches over all items once (evaluation, the reference's log-probs), with a bar if labelled."""
        micro = self.micro_batches(items)
        yield from tqdm(micro, desc=label, leave=False, disable=label is None or not self._shows_bars)

    def merge(self, mapping: dict) -> dict:
        """The union of every process's dict."""
        if self.accelerator.num_processes == 1:
            return mapping
        parts: list = [None] * self.accelerator.num_processes
        torch.distributed.all_gather_object(parts, mapping)
        return {k: v for part in parts for k, v in part.items()}

    def sum_over_processes(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        return self.accelerator.reduce(torch.tensor(float(value), device=self.device), "sum").item()

    def no_sync_unless_last(self, policy: nn.Module, index: int, window: Sequence):
        """DDP sends gradients around only on the last micro-batch of the step."""
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

    def refuse_non_finite(self, grad_norm: Tensor | float) -> None:
        """Stop, before the optimiser step, when the loss or the gradient norm is NaN or infinite."""
        values = [
            sum(self._loss, torch.zeros((), device=self.device)),
            *(t.sum(0)[0] for t in map(torch.stack, self._sums.values())),
        ]
        norm = torch.as_tensor(grad_norm, dtype=torch.float32, device=self.device)
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
        row |= {name: float(value) for name, value in extra.items()}
        row |= {"tokens_per_second": tokens / (now - self._last), "seconds": now - self._started}
        self._sums, self._loss, self._tokens, self._last = {}, [], 0, now
        self.metrics.append(row)
        if self.accelerator.is_main_process:
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
        self._show(row)
        return row

    def _show(self, row: dict[str, float]) -> None:
        headline = {
            k: f"{row[k]:.3g}"
            for k in ("loss", "dpo_loss", "reward", "accuracy", "kl", "explained_variance", "validation_loss")
            if k in row
        }
        self._bar.set_postfix(headline, refresh=False)
        self._bar.update()
        if self._bar.disable and (self.step % max(1, self.num_steps // 10) == 0 or self.step == self.num_steps):
            self.say(
                f"{self.config.method} step {self.step}/{self.num_steps}  "
                + "  ".join(f"{k} {v}" for k, v in headline.items())
            )

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
        self._bar.close()
        if self.accelerator.is_main_process:
            if samples:
                report.write_samples(self.folder / "samples.md", samples, self.config.method)
            report.plot_curves(self.folder / "curves.png", self.metrics, self.config.method)
            save(model, tokenizer, self.folder / "model.part")
            os.replace(self.folder / "model.part", self.folder / "model")
            if self.config.data.streaming:
                self.say(self._encoded.summary())
            self.say(f"{self.config.method}: {self.step} steps in {time.perf_counter() - self._started:.1f} s")
            written = sorted(p.name + "/" * p.is_dir() for p in self.folder.iterdir())
            self.say(f"wrote {self.folder}/: {', '.join(written)}")
        self.accelerator.wait_for_everyone()
        return Result(model, tokenizer, self.metrics, self.folder)


def compute_dtype(asked: str, on_cpu: bool) -> torch.dtype:
    """model.dtype -> float32 or bfloat16; auto takes bf16 only on a GPU that has it in hardware."""
    if asked == "auto":
        native = not on_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    return getattr(torch, asked)


def refuse_missing_gradients(policy: nn.Module) -> None:
    """Preflight, after the first backward pass: every trainable tensor must have received a finite gradient."""
    bad = [
        n
        for n, p in policy.named_parameters()
        if p.requires_grad and (p.grad is None or not torch.isfinite(p.grad).all())
    ]
    if bad:
        raise UserError(
            f"preflight: {len(bad)} trainable tensors got no finite gradient, first {bad[0]}: they would never learn, or spoil the update. "
            "Is a layer unused, or the input of a checkpointed block detached?"
        )
