"""Problems without end, from reasoning-gym: data.name: reasoning-gym:TASK, data.task: {its own arguments}.

    python -m loops.grpo --config configs/grpo.yaml --data.name reasoning-gym:chain_sum --data.task.max_terms 3 \\
        --grpo.reward reasoning_gym

A row has `question`, `answer` (a right one; there may be others, and a few tasks know none) and `problem`, by which the
task's own verifier judges an answer: the reward `reasoning_gym` (rollouts/rewards.py). Of data.task, `size` is the
number of rows (default 1000, of a test split 200) and `seed` another draw; the rest is the task's.

reasoning-gym draws problem i of seed s from s + i, so that neighbouring seeds share nearly all of their problems, and
easy tasks repeat themselves anyway. Here the hash of a question decides its split: none is in train and in test.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from posttrain.errors import UserError, reason
from posttrain.tiny.data import held_out

PREFIX = "reasoning-gym:"
SIZES = {"train": 1000, "test": 200}
MOST = 200  # candidates drawn for each row that is wanted, before giving up


def is_task(name: str) -> bool:
    return name.startswith(PREFIX)


def rows(name: str, split: str, task: dict[str, Any]) -> list[dict]:
    if split not in SIZES:
        raise UserError(f"data.split: {name} has the splits train and test, got '{split}'")
    own = {key: value for key, value in task.items() if key not in ("size", "seed")}
    size, seed = (_whole(task, key, default, name) for key, default in (("size", SIZES[split]), ("seed", 0)))
    found: list[dict] = []
    for start in range(0, MOST * size, 2 * size):  # in parts: some tasks draw all of theirs at once
        problems = generator(name.removeprefix(PREFIX), _text(own), seed * 10**7 + start, 2 * size)
        for entry in problems:
            question = entry["question"].strip()
            if held_out(question) == (split == "test"):
                problem = dict(entry, task=name.removeprefix(PREFIX), arguments=own)
                found.append({"question": question, "answer": entry["answer"], "problem": problem})
                if len(found) == size:
                    return found
    raise UserError(
        f"data.name '{name}': {len(found)} of {size} rows for the split {split} among {MOST * size:,} problems: the task knows too few; "
        "widen its arguments (data.task)"
    )


def _whole(task: dict[str, Any], key: str, default: int, name: str) -> int:
    value = task.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < (key == "size"):
        raise UserError(f"data.task.{key} of {name}: expected a whole number, got {value!r:.40}")
    return value


def verify(problem: dict, answer: str) -> float:
    """What the task's verifier gives an answer to its problem, 0 to 1: 1 is right."""
    task = generator(problem["task"], _text(problem["arguments"]))
    return float(task.score_answer(answer, entry=problem))


def _text(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True)


@lru_cache(maxsize=16)
def generator(task: str, arguments: str, seed: int = 0, size: int = 1) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as missing:
        raise UserError(
            f"data.name '{PREFIX}{task}' needs an extra ({missing}): pip install -r requirements-tasks.txt"
        ) from None
    if task not in DATASETS:
        raise UserError(f"data.name '{PREFIX}{task}': no such task; reasoning-gym has {', '.join(sorted(DATASETS))}")
    try:
        return reasoning_gym.create_dataset(task, size=size, seed=seed, **json.loads(arguments))
    except Exception as error:
        raise UserError(f"data.task of {PREFIX}{task}: {reason(error)}") from None
