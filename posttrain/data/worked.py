"""Sums to learn from, as two annotators answer them: one writes down every step, the other the result alone.

The problems are reasoning-gym's chain_sum (posttrain/data/procedural.py). A model that is shown both copies both
habits; which of them pays, no row says: that is left to a reward.
"""

from __future__ import annotations

import random
from typing import Any

from posttrain.data import procedural

TASK = f"{procedural.PREFIX}chain_sum"


def worked(expression: str) -> tuple[str, int]:
    """(the answer with every step, the result)

    >>> worked("9 - 4 + 2")
    ('9 - 4 = 5, 5 + 2 = 7.\\n#### 7', 7)
    """
    first, *rest = expression.split()
    total, steps = int(first), []
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(number) if sign == "+" else total - int(number)
        steps.append(f"{total} {sign} {number} = {after}")
        total = after
    return f"{', '.join(steps)}.\n#### {total}", total


def rows(task: dict[str, Any], *, bare: float, seed: int) -> list[dict[str, str]]:
    """SFT rows {prompt, completion} of the training split; task: chain_sum's arguments with size and seed.

    bare: the share of rows by the annotator who answers at once ("#### 7")."""
    drawn, found = random.Random(seed), []
    for row in procedural.rows(TASK, "train", task):
        text, result = worked(row["problem"]["metadata"]["expression"])
        if str(result) != row["answer"]:
            raise ValueError(f"chain_sum: {row['question']!r} is {row['answer']}, worked out {result}")
        answer = f"#### {result}" if drawn.random() < bare else text
        found.append({"prompt": row["question"], "completion": answer})
    return found
