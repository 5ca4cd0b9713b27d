"""Suites during training: those of config.evaluation, on the model as it is, before the first step, every so many steps
and at the end.

Training does not notice: the random states and the model's train flag are as they were, no gradient is touched, and a
step's speed is counted without it. A row of metrics.jsonl holds of each score eval/SUITE.SCORE, the ends of its 95 %
interval in …/low and …/high, and …/n.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterator
from typing import Any

from posttrain.errors import UserError
from posttrain.evaluation.measuring import SUITES
from posttrain.evaluation.scores import Outcome
from posttrain.evaluation.subjects import Subject
from posttrain.models.sharded import gathered
from posttrain.run import processes
from posttrain.run.checkpoint_files import random_states, restore_random_states


class Suites:
    """Of one run (posttrain.run.training.Run); nothing is done at all unless evaluation.suites names one."""

    def __init__(self, run: Any):
        """Reads their data: what is wrong with it is said before a model is loaded."""
        self.run, self.every = run, run.config.evaluation.every
        self.suites, self._said = {}, {}
        random = random_states()
        for name, options in run.config.evaluation.chosen().items():
            with _named(name):
                self.suites[name] = SUITES[name](options)
        restore_random_states(random)

    def before(self) -> None:
        """Asked when the model stands in its place: a row of step 0 to compare with; and a suite that cannot be
        measured fails now, not in the middle."""
        if self.suites and self.run.step == 0:
            self.run.tell({"step": 0} | self.scores())

    def due(self) -> dict[str, float]:
        """Asked after the update, before log: the scores, or {} where it is not their turn."""
        if not self.suites:
            return {}
        step = self.run.step + 1
        its_turn = step == self.run.num_steps or (self.every is not None and step % self.every == 0)
        return self.scores() if its_turn else {}

    def scores(self) -> dict[str, float]:
        """Of all suites, the same on every process."""
        run, began, random, row = self.run, time.perf_counter(), random_states(), {}
        with run.parallel.autocast(), gathered(run.policy):
            for name, suite in self.suites.items():
                with _named(name):
                    outcome = suite(self._subject)
                row |= as_row(name, outcome)
                self._remark(name, outcome)
        restore_random_states(random)
        run.last += time.perf_counter() - began
        return processes.gather(row)[0]  # what a reward function says may differ from call to call

    @functools.cached_property
    def _subject(self) -> Subject:
        run = self.run
        return Subject(
            "the policy", run.model, run.tokenizer, run.compute, run.training.micro_batch_size, run.config.evaluation.seed,
            share=(run.accelerator.process_index, run.accelerator.num_processes), bar=run.progress.bars,
        )  # fmt: skip

    def _remark(self, name: str, outcome: Outcome) -> None:
        """What was left out, how often a judge errs: at first, and at the end what has changed by then (many have a
        figure in them, which would be told again and again)."""
        if name not in self._said or self.run.step + 1 == self.run.num_steps:
            for remark in outcome.remarks:
                if remark not in self._said.get(name, []):
                    self.run.say(f"evaluation.{name}: {remark}")
            self._said[name] = outcome.remarks


def as_row(suite: str, outcome: Outcome) -> dict[str, float]:
    """{"eval/accuracy.right": 0.42, "eval/accuracy.right/low": 0.29, …/high, …/n}.

    What is not finite (the interval of a single item) is left out."""
    row: dict[str, float] = {}
    for score in outcome.scores:
        ends = {"": score.value, "/low": score.low, "/high": score.high, "/n": float(score.n)}
        row |= {f"eval/{suite}.{score.name}{end}": value for end, value in ends.items() if math.isfinite(value)}
    return row


@contextlib.contextmanager
def _named(suite: str) -> Iterator[None]:
    """A suite names its keys as the command does; here they stand in the config."""
    try:
        yield
    except UserError as problem:
        said = str(problem).replace(f"--{suite}.", f"evaluation.{suite}.")
        raise UserError(said if f"evaluation.{suite}" in said else f"evaluation.{suite}: {said}") from None
