"""What the steps of a config look like: some of its rows, encoded as its loop will, laid into micro-batches; of RL,
made up. For an estimate of time: the model is not loaded."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, replace
from typing import Any

from posttrain.data.reader import Rows
from posttrain.data.rows import load_rows
from posttrain.errors import UserError, reason
from posttrain.models import loading, lora
from posttrain.models.duration import Row
from posttrain.run import steps
from posttrain.tokens import template
from posttrain.tokens.batch import Example, Packed
from posttrain.tokens.examples import Pair, both_sides, labelled, pairs, prompts, sft_examples

LOOKED_AT = 512  # rows that are encoded
WINDOWS = 8  # steps that are laid out, drawn from them
ROLLOUTS = ("grpo", "ppo")


@dataclass(frozen=True)
class Read:
    items: list  # as the loop encodes them
    count: int | None  # of them in an epoch; None: nobody knows
    said: str


def read(config: Any, longest: int) -> Read:
    """Some of the rows; rows of the greatest length where they cannot be read. longest: data.max_length, or its
    default."""
    try:
        return _encoded(config, _tokenizer(config.model), longest)
    except (UserError, ValueError, OSError) as problem:
        said = f"the rows cannot be read ({reason(problem)}); taken to be as long as they may, half of it learned"
        return Read(_longest(config, longest), None, said)


def _tokenizer(model: Any) -> Any:
    path = loading.find(model.name)
    if lora.is_adapter(path) and not lora.has_tokenizer(path):
        path = lora.base_of(path).name
    tokenizer = loading.read_tokenizer(path, {"trust_remote_code": model.trust_remote_code})
    template.prepare_tokenizer(tokenizer)
    return tokenizer


def _encoded(config: Any, tokenizer: Any, longest: int) -> Read:
    kind, function = _kind(config)
    room = (getattr(config, kind).max_new_tokens, config.data, kind) if kind in ROLLOUTS else (config.data,)
    rows = load_rows(config.data, kind)
    if not isinstance(rows, Rows):
        items = list(itertools.islice(function(rows, tokenizer, longest, *room).items.epoch(0), LOOKED_AT))
        return Read(items, None, f"a stream, {len(items)} of it looked at")
    every = math.ceil(len(rows) / LOOKED_AT)
    some = replace(rows, rows=rows.rows[::every], places=rows.places[::every])
    items = function(some, tokenizer, longest, *room).items
    count = max(1, round(len(items) / len(some) * len(rows) * (1 - config.data.validation_split)))
    what = "prompts" if kind in ROLLOUTS else "pairs" if isinstance(items[0], Pair) else "rows"
    return Read(items, count, f"{count:,} {what}{f', {len(items)} looked at' * (every > 1)}")


def _kind(config: Any) -> tuple[str, Any]:
    """What load_rows calls the rows of this method, and what encodes them."""
    if config.method in ROLLOUTS:
        return config.method, prompts
    if config.method in ("sft", "distill"):
        return "sft", sft_examples
    if config.method == "kto" or (config.method == "reward" and config.reward.loss == "outcome"):
        return "outcome", labelled
    return "reward" if config.method == "reward" else "dpo", pairs


def _longest(config: Any, longest: int) -> list:
    kind, function = _kind(config)
    if kind in ROLLOUTS:
        return [[0] * max(1, longest - getattr(config, kind).max_new_tokens)]
    half = longest // 2
    row = Example.of([0] * half, [1] * (longest - half))
    return [Pair(row, row) if function is pairs else row] * config.training.batch_size


# ---------------------------------------------------------------- laid into steps


def windows_of(config: Any, items: list, longest: int) -> list[list[list[Row]]]:
    """Some optimiser steps of a loop whose answers are given, in micro-batches."""
    training, drawn = config.training, list(items)
    random.Random(0).shuffle(drawn)
    pack_to = longest if getattr(training, "packing", False) else None
    found: list = []
    for rows in itertools.islice(steps.batched(iter(drawn), training.batch_size), WINDOWS):
        if not found or len(rows) == training.batch_size:  # a short last one is not typical
            micros = steps.micro_batches(rows, 0, 1, training.micro_batch_size, pack_to)
            found.append([_rows(micro) for micro in micros])
    return found


def _rows(micro: list) -> list[Row]:
    items = both_sides(micro) if isinstance(micro[0], Pair) else micro
    return [_row(getattr(item, "example", item)) for item in items]


def _row(item: Example | Packed) -> Row:
    if isinstance(item, Packed):
        return Row(len(item), item.num_active)
    return Row(len(item), item.num_active, item.prompt_length, hash(tuple(item.input_ids[: item.prompt_length])))


def window_of_answers(config: Any, lengths: list[int], new: int) -> list[list[Row]]:
    """The micro-batches of one optimiser step over a rollout: answers of `new` tokens to prompts of these lengths."""
    rl, size = getattr(config, config.method), config.training.micro_batch_size
    rows = [Row(n + new, new, n, prompt) for prompt, n in enumerate(lengths) for _ in range(rl.group_size)]
    if not shares(config):
        rows.sort(key=lambda row: -row.tokens)
    rows = rows[: math.ceil(len(rows) / rl.minibatches)]
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def steps_of(config: Any, count: int | None) -> int | None:
    """Optimiser steps of the whole run; None where that depends on rows that nobody has counted."""
    training, method = config.training, getattr(config, config.method)
    if training.max_steps is not None or count is None:
        return training.max_steps
    if config.method in ROLLOUTS:
        return training.epochs * max(1, count // method.prompts_per_step) * method.minibatches * method.inner_epochs
    return training.epochs * math.ceil(count / training.batch_size)


def shares(config: Any) -> bool | str:
    return getattr(config.training, "share_prompts", False)
