"""What a reward function may know of the run, and what it may log: names and meaning as TRL documents them.

trainer_state                how far the run is
log_metric(name, value)      a number about the answers of this rollout: their mean, over all calls and processes, is
                             logged/NAME in metrics.jsonl (logged/NAME_held_out: when held-out prompts are asked)
log_extra(column, values)    a value for each answer: logged/COLUMN of its line in rollouts.jsonl
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, SupportsFloat

from posttrain.errors import UserError

OF_A_RUN = ("trainer_state", "log_metric", "log_extra")


@dataclass(frozen=True)
class TrainerState:
    """How far the run is when the answers are scored: the fields of transformers' TrainerState that mean something
    here."""

    global_step: int  # optimiser steps done
    max_steps: int  # of the whole run
    epoch: float | None  # passes over the prompts, so far; None: a stream, which has no length
    num_train_epochs: int | None  # passes begun when the run ends
    is_world_process_zero: bool


class Logged:
    """By the functions of one rollout, in this process."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}  # {name: what log_metric was given}
        self.columns: dict[str, list] = {}  # {column: what log_extra was given, as JSON has it}

    def log_metric(self, name: str, value: float) -> None:
        if not isinstance(name, str) or not is_number(value):
            raise TypeError(f"log_metric({name!r:.40}, {value!r:.40}): expected a name and a number")
        self.values.setdefault(name, []).append(float(value))

    def log_extra(self, column: str, values: Iterable) -> None:
        if not isinstance(column, str) or isinstance(values, (str, bytes, Mapping, Set)):
            raise TypeError(
                f"log_extra({column!r:.40}, {values!r:.40}): expected a name and a list of one value per completion"
            )
        plain = json.loads(json.dumps(list(values), default=_plain))
        self.columns.setdefault(column, []).extend(plain)

    def sums(self) -> dict[str, tuple[float, int]]:
        return {name: (math.fsum(values), len(values)) for name, values in self.values.items()}

    def refuse_uneven(self, completions: int) -> None:
        for column, values in self.columns.items():
            if len(values) != completions:
                raise UserError(
                    f"log_extra: the column '{column}' got {len(values)} values for {completions} completions: give one for each "
                    "completion, and no column from two functions"
                )


def is_number(value: Any) -> bool:
    return isinstance(value, SupportsFloat) and not isinstance(value, str)  # numpy's strings would be read as numbers


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
