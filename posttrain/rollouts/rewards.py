"""Verifiable rewards: was the answer right? And the door for reward functions of your own.

A reward function takes lists, one entry per completion, and returns a list of floats:

    def reward(completions, **columns) -> list[float]

`completions` are the answers: text, or lists of one message where the data's prompts are lists of messages. It may also
ask, by parameter name, for `prompts`, `completion_ids`, `finished` (did the model end its turn?), any column of the
data, and more (calling.py); it may be `async`, and return None for a completion to which it does not apply. So plain
functions, synchronous or not, that were written for TRL's GRPO run here; docs/your_own.md says which do not. Name one
in the config (`grpo.reward: my_module:my_reward`) or pass it: train(config, reward=f).
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation

from posttrain.data import procedural
from posttrain.data.reader import Rows
from posttrain.errors import UserError
from posttrain.rollouts.calling import LARGEST, call_all, named, text_of

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


def answer(completions: list, answer: list, finished: list[bool]) -> list[float]:
    """1 where the extracted answer equals the row's `answer` and the model ended its turn, else 0.

    The row's answer may be a number ("72") or a worked solution that ends in "#### 72" (GSM8K as shipped)."""
    return [
        float(ended and said is not None and said == wanted)
        for said, wanted, ended in zip(
            (extract_answer(text_of(c)) for c in completions), map(target, answer), finished, strict=True
        )
    ]


def final_text(text: str) -> str:
    r"""The final answer as text: what stands behind the last "####", in the last <answer>…</answer> or the last
    \boxed{…}; where there is none of them, all of it."""
    if "####" in text:
        return text.rsplit("####", 1)[1].strip()
    marked = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL) or re.findall(
        r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", text
    )
    return (marked[-1] if marked else text).strip()


def reasoning_gym(completions: list, problem: list[dict], finished: list[bool]) -> list[float]:
    """What the task's own verifier gives the final answer (data.name: reasoning-gym:TASK), 0 where the turn never
    ended."""
    return [
        procedural.verify(p, final_text(text_of(c))) if ended else 0.0
        for c, p, ended in zip(completions, problem, finished, strict=True)
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


BUILT_IN: dict[str, Callable] = {"answer": answer, "reasoning_gym": reasoning_gym}


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
    except SystemExit as stop:
        raise UserError(f"{key} '{name}': importing {module} called sys.exit({stop.code!r})") from stop
    except ModuleNotFoundError as error:
        there = f"; is {module.replace('.', '/')}.py in this folder?" if error.name == module.split(".")[0] else ""
        raise UserError(f"{key} '{name}': {error}{there}") from error
    except Exception as error:  # whatever the user's module does when it is imported
        raise UserError(f"{key} '{name}': {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UserError(f"{key} '{name}' is {found!r:.60}, not a function")
    return found


def of_rollout(
    functions: Sequence[Callable], weights: Sequence[float] | None, rollout, texts: list[str], asked: list[dict]
) -> tuple[list[float], dict]:
    """score() of a rollout's completions; asked: the canonical row of each prompt."""
    return score(functions, weights, offer(of_each(asked, len(texts)), texts, rollout))


def of_each(asked: list[dict], completions: int) -> list[dict]:
    """The row of each completion, from the row of each prompt."""
    return [row for row in asked for _ in range(completions // len(asked))]


ALWAYS = ("prompts", "completions", "completion_ids", "finished")  # what `offer` has of every rollout


def offered(rows) -> list[str]:
    """The names of all that reward functions may ask for of these rows."""
    return [*dict.fromkeys(name for row in rows.rows for name in row["columns"]), *ALWAYS]


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
    count), unweighted, under "reward/NAME"."""
    return add_up(functions, weights, call_all(functions, available), available["completions"])


def add_up(
    functions: Sequence[Callable],
    weights: Sequence[float] | None,
    given: list[list[float | None]],  # by each function, for every completion
    completions: list,
) -> tuple[list[float], dict[str, tuple[float, int]]]:
    """score() of what has been given already.

    A function may give None for a completion: it abstains there. A completion on which all abstain is an error."""
    totals: list[float | None] = [None] * len(completions)
    parts: dict[str, tuple[float, int]] = {}
    for name, weight, rewards in zip(named(functions), weights or [1.0] * len(functions), given, strict=True):
        for i, reward in enumerate(rewards):
            if reward is not None:
                totals[i] = (totals[i] or 0.0) + weight * reward
        own = [reward for reward in rewards if reward is not None]
        parts[f"reward/{name}"] = (sum(own), len(own))
    for i, total in enumerate(totals):
        if total is None:
            raise UserError(
                f"every reward function returned None for completion {i}: {text_of(completions[i])!r:.80}. Give a number for it, or "
                "add a function that does"
            )
        if not abs(total) <= LARGEST:
            raise UserError(
                f"the weighted rewards of completion {i} add up to {total:g}, expected at most {LARGEST:g} in size: lower reward_weights"
            )
    return totals, parts if len(functions) > 1 else {}
