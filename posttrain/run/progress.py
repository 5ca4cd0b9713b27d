"""How a run tells where it is: a bar on a terminal, plain lines elsewhere (CI). Only the main process speaks."""

from __future__ import annotations

import os
import sys
import time

import torch
from tqdm import tqdm

HEADLINE = (
    "loss",
    "dpo_loss",
    "reward",
    "accuracy",
    "divergence",
    "teacher_kl",
    "kl",
    "explained_variance",
    "validation_loss",
)
LINES = 10  # plain lines over the whole run


class Progress:
    def __init__(self, main: bool):
        self.main = main
        self.bars = main and sys.stderr.isatty() and "CI" not in os.environ
        self._bar: tqdm | None = None

    def say(self, line: str) -> None:
        """One line that does not break the bar."""
        if self.main:
            tqdm.write(line, file=sys.stderr)

    def begin(self, method: str, step: int, num_steps: int) -> None:
        self.method, self.num_steps = method, num_steps
        self.began, self.first = time.perf_counter(), step
        self._bar = tqdm(total=num_steps, initial=step, desc=method, unit="step", disable=not self.bars)
        self._score: dict[str, str] = {}

    def note(self, row: dict[str, float]) -> None:
        """Keep the first of the suites' scores, where the row has any: shown until the next ones come."""
        if (name := next((name for name in row if name.startswith("eval/")), None)) is not None:
            self._score = {name.removeprefix("eval/"): f"{row[name]:.3g}"}

    def show(self, row: dict[str, float]) -> None:
        step = int(row["step"])
        seconds_per_step = (time.perf_counter() - self.began) / (step - self.first)
        headline = {k: f"{row[k]:.3g}" for k in HEADLINE if k in row} | self._score
        speed = f"{row['tokens_per_second']:,.0f} tokens/s"
        if self.bars:
            self._bar.set_postfix_str("  ".join(f"{k} {v}" for k, v in headline.items()) + f"  {speed}", refresh=False)
            self._bar.update()
        elif step % max(1, self.num_steps // LINES) == 0 or step == self.num_steps:
            left = f", {clock((self.num_steps - step) * seconds_per_step)} left" if step < self.num_steps else ""
            values = "  ".join(f"{k} {v}" for k, v in headline.items())
            self.say(f"{self.method} step {step}/{self.num_steps}  {values}  {speed}{left}")

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()


def clock(seconds: float) -> str:
    """3725 -> 1:02:05

    >>> clock(3725), clock(65.4)
    ('1:02:05', '1:05')
    """
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def peak_memory(device: torch.device) -> float:
    """The most that this (the main) process has held so far, in GiB: of the GPU where there is one, else of RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
