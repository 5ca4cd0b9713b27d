"""Verifiable rewards: was the answer right? And the door for reward functions of your own.

A reward function takes lists, one entry per completion, and returns a list of floats:

    def reward(completions, **columns) -> list[float]

`completions` are the answers: text, or lists of one message where the data's prompts are lists of messages. It may also
ask, by parameter name, for `prompts`, `completion_ids`, `finished` (did the model end its turn?), and any column of the
data. It is called with what its signature names, or with everything if it takes **kwargs. So reward functions written
for TRL's GRPO run unchanged. Name one in the config (`grpo.reward: my_module:my_reward`) or pass it: train(config,
reward=f).
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import SupportsFloat

from posttrain.data.reader import Rows
from posttrain.errors import UserError

NUMBER = r"[-−+]?\s*\$?\s*[-−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"


def parse_number(text: str) -> Decimal | None:
    """ "1,234" -> 1234, "$18.00" -> 18, "-3" -> −3, "7 apples" -> 7; None where no single number stands at the
    beginning."""
    text = re.sub(r"\\[,!;$%]|\*\*", lambda m: {"\\$": "$", "\\%": "%"}.get(m.group(), ""), text).strip()
    match = re.match(NUMBER, text)
    if match is None:
        return None
    rest = text[match.end() :]
    if re.match(r"\w", rest) or re.search(r"\d", rest):  # 1e3, 3/4, 2 + 2, 5 or 6, 10:30: not one number
        return None
    digits = re.sub(r"[\s$,+]", "", match.group()).replace("−", "-")
    try:
        return Decimal(digits)
    except InvalidOperation:
        return None


def extract_answer(text: str) -> Decimal | None:
    r"""The final answer of a solution: the number behind the last "####", or in \boxed{…}; None if there is none.

    Two different boxed answers are no answer: a model must not collect the reward by naming several."""
    boxed = {parse_number(b) for b in re.findall(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", text)}
    if boxed:
        return boxed.pop() if len(boxed) == 1 else None
    if "####" in text:
        line = text.rsplit("####", 1)[1].lstrip(" \t").split("\n", 1)[0]
        return parse_number(line)
    return None


def text_of(completion: str | list[dict]) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def answer(completions: list, answer: list, finished: list[bool]) -> list[float]:
    """1 where the extracted answer equals the row's `answer` and the model ended its turn, else 0.

    The row's answer may be a number ("72") or a worked solution that ends in "#### 72" (GSM8K as shipped)."""
    return [
        float(ended and said is not None and said == wanted)
        for said, wanted, ended in zip(
            (extract_answer(text_of(c)) for c in completions), map(target, answer), finished, strict=True
        )
    ]


def target(value: object) -> Decimal:
    """The right answer of a row, from a number or from a worked solution."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    found = Decimal(str(value)) if number and math.isfinite(value) else parse_number(str(value))
    if found is None:
        found = extract_answer(str(value))
    if found is None:
        raise UserError(
            f"reward 'answer': the column `answer` must hold a number or end in '#### NUMBER', got {str(value)!r:.80}"
        )
    return found


def refuse_bad_targets(functions: Sequence[Callable], data) -> None:
    """With the built-in reward every row needs a right answer: said now, with its row, not when it is first sampled."""
    if answer not in functions or not isinstance(data, Rows):
        return
    for index, row in enumerate(data.rows):
        if "answer" not in row["columns"]:
            raise UserError(
                f"{data.where(index)}: the reward 'answer' needs a column `answer`; found {', '.join(row['columns']) or 'none beside the prompt'}"
            )
        try:
            target(row["columns"]["answer"])
        except UserError as problem:
            raise UserError(f"{data.where(index)}: {problem}") from None


BUILT_IN: dict[str, Callable] = {"answer": answer}


def find(
    given: str | Callable | Sequence[str | Callable],
    weights: Sequence[float] | None = None,
    *,
    key: str = "grpo.reward",
) -> list[Callable]:
    """What the config names under `key`, or what Python passed, -> the functions: built-in names,
    package.module:function, callables."""
    names = [given] if isinstance(given, str) or callable(given) else given
    found = [
        name if callable(name) else BUILT_IN[name] if name in BUILT_IN else function_named(name, key) for name in names
    ]
    if weights is not None and len(weights) != len(found):
        raise UserError(f"{key}_weights has {len(weights)} entries for {len(found)} reward functions")
    return found


def function_named(name: str, key: str) -> Callable:
    """package.module:function -> the function; `key` is where the name was given."""
    module, colon, function = name.partition(":")
    if not colon:
        built_in = f"{', '.join(BUILT_IN)}, or " if "reward" in key else ""
        raise UserError(f"{key} '{name}': expected {built_in}package.module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's module does when it is imported
        raise UserError(f"{key} '{name}': {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UserError(f"{key} '{name}' is {found!r:.60}, not a function")
    return found


def of_rollout(
    functions: Sequence[Callable], weights: Sequence[float] | None, rollout, texts: list[str], asked: list[dict]
) -> tuple[list[float], dict]:
    """score() of a rollout's completions; asked: the canonical row of each prompt."""
    rows = [row for row in asked for _ in range(len(texts) // len(asked))]
    return score(functions, weights, offer(rows, texts, rollout))


def offer(rows: list[dict], texts: list[str], rollout) -> dict[str, list]:
    """What reward functions may ask for, one entry per completion. A prompt that the data gave as messages gets its
    completion as messages, [{"role": "assistant", "content": text}]; a string prompt gets a string."""
    names = dict.fromkeys(name for row in rows for name in row["columns"])
    asked = [row["asked"] for row in rows]
    return {name: [row["columns"].get(name) for row in rows] for name in names} | {
        "prompts": asked,
        "completions": [
            [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text
            for prompt, text in zip(asked, texts, strict=True)
        ],
        "completion_ids": rollout.completion_ids,
        "finished": rollout.finished,
    }


def score(
    functions: Sequence[Callable], weights: Sequence[float] | None, available: dict[str, list]
) -> tuple[list[float], dict[str, tuple[float, int]]]:
    """The weighted sum of the functions' rewards, one per completion; and, of several functions, each one's own (sum,
    count), unweighted, under "reward/NAME".

    A function may return None for a completion: it abstains there. A completion on which all abstain is an error."""
    n = len(available["completions"])
    totals: list[float | None] = [None] * n
    parts: dict[str, tuple[float, int]] = {}
    for function, weight in zip(functions, weights or [1.0] * len(functions), strict=True):
        rewards, name = call(function, available), getattr(function, "__name__", str(function))
        for i, reward in enumerate(rewards):
            if reward is not None and not (isinstance(reward, SupportsFloat) and math.isfinite(float(reward))):
                raise UserError(
                    f"reward function '{name}' returned {reward!r:.40} for completion {i}, expected a number: "
                    f"{text_of(available['completions'][i])!r:.80}"
                )
            if reward is not None:
                totals[i] = (totals[i] or 0.0) + weight * float(reward)
        given = [float(reward) for reward in rewards if reward is not None]
        key = f"reward/{name}" if f"reward/{name}" not in parts else f"reward/{name}_{len(parts) + 1}"
        parts[key] = (sum(given), len(given))
    if None in totals:
        first = totals.index(None)
        raise UserError(
            f"every reward function returned None for completion {first}: {text_of(available['completions'][first])!r:.80}"
        )
    return totals, parts if len(functions) > 1 else {}


def call(function: Callable, available: dict[str, list]) -> list[float | None]:
    name = getattr(function, "__name__", str(function))
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        wanted = available
    else:
        missing = [p.name for p in parameters if p.default is p.empty and p.name not in available]
        if missing:
            raise UserError(
                f"reward function '{name}' asks for {', '.join(missing)}, the rows have {', '.join(available)}"
            )
        wanted = {p.name: available[p.name] for p in parameters if p.name in available}
    try:
        rewards = function(**wanted)
    except Exception as error:
        raise UserError(f"reward function '{name}' failed with {type(error).__name__}: {error}") from error
    if isinstance(rewards, str) or not hasattr(rewards, "__len__"):
        raise UserError(
            f"reward function '{name}' must return a list of floats, one per completion, got {rewards!r:.60}"
        )
    rewards = list(rewards)
    if len(rewards) != len(available["completions"]):
        raise UserError(
            f"reward function '{name}' returned {len(rewards)} rewards for {len(available['completions'])} completions"
        )
    return rewards
