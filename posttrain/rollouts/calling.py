"""Calling reward functions: what they are handed, and what they may give back.

A function is called with what its signature names, or with everything if it takes **kwargs:

    completions, prompts, completion_ids, finished    lists, one entry per completion
    any column of the data                            the same
    trainer_state, log_metric, log_extra              in a training run (logged.py)

The lists are copies: what a function does to them in place, it does to nobody else's, least of all to the tokens that
are trained on. What an `async def` function gives is awaited, that of all functions at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import math
import os
import reprlib
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

from posttrain.errors import UserError, reason
from posttrain.rollouts.logged import OF_A_RUN, is_number

LARGEST = 1e18  # rewards are squared (PPO's value loss, the std of a group), and float32 ends at 3.4e38


def named(functions: Sequence[Callable]) -> list[str]:
    """What each is called in messages and metrics: the second of the same name is NAME_2, or whatever its number is."""
    names: list[str] = []
    for number, function in enumerate(functions, start=1):
        while isinstance(function, functools.partial):
            function = function.func
        name = getattr(function, "__name__", type(function).__name__)
        names.append(f"{name}_{number}" if name in names else name)
    return names


def listen(functions: Sequence[Callable], *offered: str) -> bool:
    """Does any of them take one of these arguments?"""
    wanted = [_parameters(function, name) for function, name in zip(functions, named(functions), strict=True)]
    return any(p.kind is p.VAR_KEYWORD or p.name in offered for of_one in wanted for p in of_one)


def call_all(functions: Sequence[Callable], available: dict[str, Any]) -> list[list[float | None]]:
    """What each function gives for every completion, None where it does not apply: first all are called, in turn, then
    what has to be awaited is awaited together."""
    names, completions = named(functions), available["completions"]
    given: list[Any] = []
    try:
        for function, name in zip(functions, names, strict=True):
            returned = _call(function, name, available)
            given.append(returned if inspect.isawaitable(returned) else _numbers(returned, name, completions))
    except BaseException:
        for left in filter(inspect.iscoroutine, given):  # or Python warns that they were never awaited
            left.close()
        raise
    waiting = {i: _waited_for(names[i], x) for i, x in enumerate(given) if inspect.isawaitable(x)}
    if waiting:
        for i, returned in zip(waiting, _awaited(list(waiting.values())), strict=True):
            given[i] = _numbers(returned, names[i], completions)
    return given


def text_of(completion: str | list[dict]) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


# ---------------------------------------------------------------- one call


def _parameters(function: Callable, name: str) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise UserError(
            f"reward function '{name}': its parameters cannot be read ({reason(error)}): wrap it in a function of yours"
        ) from error


def refuse_missing(functions: Sequence[Callable], offered: Iterable[str]) -> None:
    """Before anything is sampled: every function gets what it asks for. offered: all names that it may ask for."""
    for function, name in zip(functions, named(functions), strict=True):
        _refuse_missing(_parameters(function, name), name, offered)


def _call(function: Callable, name: str, available: dict[str, Any]) -> Any:
    parameters = _parameters(function, name)
    _refuse_missing(parameters, name, available)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    wanted = available if takes_all else [p.name for p in parameters if p.name in available]
    with _in_a_sentence(name):
        return function(**{key: _copied(available[key]) for key in wanted})


def _refuse_missing(parameters: list[inspect.Parameter], name: str, available: Iterable[str]) -> None:
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in available and p.kind not in several]
    if missing:
        of_rows = [column for column in available if column not in OF_A_RUN]
        hint = "; a training run alone has them" if missing[0] in OF_A_RUN else f", the rows have {', '.join(of_rows)}"
        raise UserError(f"reward function '{name}' asks for {', '.join(missing)}{hint}")


def _copied(value: Any) -> Any:
    """Lists and dicts, however deep, are new ones: that is what rows are made of."""
    if isinstance(value, list):
        return [_copied(v) if isinstance(v, (list, dict)) else v for v in value]
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, dict) else value


@contextlib.contextmanager
def _in_a_sentence(name: str) -> Iterator[None]:
    """Whatever a reward function raises is said with its name. (Ctrl-C is not its doing.)"""
    try:
        yield
    except SystemExit as stop:
        raise UserError(f"reward function '{name}' called sys.exit({stop.code!r})") from stop
    except (Exception, asyncio.CancelledError) as error:
        raise UserError(f"reward function '{name}' failed with {type(error).__name__}: {reason(error)}") from error


# ---------------------------------------------------------------- what is awaited


async def _waited_for(name: str, awaitable: Awaitable) -> Any:
    with _in_a_sentence(name):
        return await awaitable


async def _together(awaitables: list[Awaitable]) -> list:
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # one has failed: the others are not waited for
            task.cancel()


def _awaited(awaitables: list[Awaitable]) -> list:
    future = asyncio.run_coroutine_threadsafe(_together(awaitables), _loop(os.getpid()))
    try:
        return future.result()
    finally:
        future.cancel()  # after Ctrl-C: nothing goes on behind it


@functools.cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """One event loop for the whole run, in a thread of its own: a client that a function has opened in one rollout is
    still good in the next, and the loop that a notebook runs in is not in the way."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
    return loop


# ---------------------------------------------------------------- what came back


def _numbers(returned: Any, name: str, completions: list) -> list[float | None]:
    """One number or None per completion, or one sentence on what was returned instead."""
    expected = (
        f"reward function '{name}' must return a list of floats, one per completion, None where it does not apply "
        "(a 1-D array or tensor will do)"
    )
    if hasattr(returned, "tolist") and hasattr(returned, "ndim"):  # numpy, torch, pandas
        if returned.ndim != 1:
            raise UserError(f"{expected}, got {_a(returned)} of shape {list(returned.shape)}")
        returned = returned.tolist()
    elif not isinstance(returned, Sequence) or isinstance(returned, (str, bytes, bytearray)):
        raise UserError(f"{expected}, got {_a(returned)}: {_shown(returned)}")
    if len(returned) != len(completions):
        raise UserError(f"reward function '{name}' returned {len(returned)} rewards for {len(completions)} completions")
    return [None if x is None else _number(x, name, i, completions[i]) for i, x in enumerate(returned)]


def _number(value: Any, name: str, index: int, completion: Any) -> float:
    try:
        number = float(value) if is_number(value) else math.nan
    except OverflowError:  # 10**400
        number = LARGEST * 10
    except (TypeError, ValueError, RuntimeError):  # a tensor of two numbers
        number = math.nan
    if not abs(number) <= LARGEST:
        limit = f" of at most {LARGEST:g} in size (its square has to fit into float32)" if math.isfinite(number) else ""
        raise UserError(
            f"reward function '{name}' returned {_shown(value)} for completion {index}, expected a number{limit}: "
            f"{text_of(completion)!r:.80}"
        )
    return number


def _a(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _shown(value: Any) -> str:
    """On one line, and short."""
    try:
        return f"{' '.join(reprlib.repr(value).split()):.60}"
    except Exception:  # an int of more digits than Python writes, a __repr__ that fails
        return f"{_a(value)} that cannot be written"
