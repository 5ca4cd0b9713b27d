"""How reward functions are called: with copies, awaited together; and one sentence for whatever is not a reward."""

import asyncio
import decimal
import fractions
import functools
import sys
import threading
import time

import numpy as np
import pytest
import torch

from posttrain.errors import UserError
from posttrain.rollouts import rewards
from posttrain.rollouts.calling import call_all, listen, named

AVAILABLE = {
    "prompts": ["1 + 1?", "2 + 2?"],
    "completions": ["ab", "c"],
    "completion_ids": [[1, 2], [3]],
    "finished": [True, False],
    "level": [1, 2],
}


def gives(returned):
    def function(completions):
        return returned

    return function


# ---------------------------------------------------------------- what is a reward


@pytest.mark.parametrize(
    "returned",
    [
        [1.0, -2.0], (1, -2), np.array([1.0, -2.0]), np.array([1, -2], dtype=object), torch.tensor([1.0, -2.0], requires_grad=True),
        torch.tensor([1, -2], dtype=torch.bfloat16), [torch.tensor(1.0), torch.tensor([-2.0])], [np.float32(1), np.int64(-2)],
        [decimal.Decimal(1), fractions.Fraction(-2)],
    ],
    ids=lambda returned: f"{type(returned).__name__}-{type(returned[0]).__name__}",
)  # fmt: skip
def test_lists_arrays_and_tensors_of_numbers(returned):
    ((first, second),) = call_all([gives(returned)], AVAILABLE)
    assert (first, second) == (1.0, -2.0) and type(first) is type(second) is float


def test_booleans_and_none():
    assert call_all([gives([True, None]), gives(np.array([False, True]))], AVAILABLE) == [[1.0, None], [0.0, 1.0]]
    assert call_all([gives([1e18, -1e18])], AVAILABLE) == [[1e18, -1e18]]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ({0: 1.0, 1: 2.0}, r"got a dict: {0: 1.0, 1: 2.0}$"),
        ({0: 1.0, 1: 2.0}.values(), "got a dict_values"),
        ({1.0, 2.0}, r"got a set: {1.0, 2.0}$"),
        ("ab", "got a str: 'ab'$"),
        (b"ab", "got a bytes"),
        (1.0, "got a float: 1.0$"),
        (None, "got a NoneType: None$"),
        ((x for x in (1.0, 2.0)), "got a generator"),
        (map(float, (1, 2)), "got a map"),
        (np.zeros((2, 2)), r"got a ndarray of shape \[2, 2\]$"),
        (np.array(1.0), r"got a ndarray of shape \[\]$"),
        (torch.zeros(2, 1), r"got a Tensor of shape \[2, 1\]$"),
        (torch.tensor(1.0), r"got a Tensor of shape \[\]$"),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, str) else "",
)
def test_what_is_no_list_of_numbers(returned, said):
    with pytest.raises(UserError, match=said) as refused:
        call_all([gives(returned)], AVAILABLE)
    assert str(refused.value).startswith(
        "reward function 'function' must return a list of floats, one per completion, None where it does not apply "
        "(a 1-D array or tensor will do), got "
    )
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 240


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "nan for completion 1, expected a number: 'c'"),
        (float("inf"), "inf for completion 1, expected a number: 'c'"),
        (decimal.Decimal("NaN"), r"Decimal\('NaN'\) for completion 1, expected a number: 'c'"),
        ("1.0", "'1.0' for completion 1, expected a number: 'c'"),
        (np.str_("1.0"), r"np.str_\('1.0'\) for completion 1, expected a number: 'c'"),
        ([1.0], r"\[1.0\] for completion 1, expected a number: 'c'"),
        ({}, "{} for completion 1, expected a number: 'c'"),
        (1 + 2j, r"\(1\+2j\) for completion 1, expected a number: 'c'"),
        (torch.zeros(2), r"tensor\(\[0., 0.\]\) for completion 1, expected a number: 'c'"),
        (10**400, "10000.* for completion 1, expected a number of at most 1e[+]18 in size"),
        (10**5000, "an int that cannot be written for completion 1, expected a number of at most 1e[+]18"),
        (1e300, "1e[+]300 for completion 1, expected a number of at most 1e[+]18 in size .its square has to fit into float32.: 'c'"),
        (-1e300, "-1e[+]300 for completion 1, expected a number of at most 1e[+]18"),
        (3e38, "3e[+]38 for completion 1, expected a number of at most 1e[+]18"),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, str) else "",
)  # fmt: skip
def test_what_is_no_reward(value, said):
    with pytest.raises(UserError, match=f"^reward function 'function' returned {said}") as refused:
        call_all([gives([0.0, value])], AVAILABLE)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 240


def test_the_sum_of_several_is_held_to_the_same_size():
    # 2 · 6e17 + 0 = 1.2e18
    with pytest.raises(
        UserError, match=r"rewards of completion 1 add up to 1.2e[+]18, expected at most 1e[+]18 in size"
    ):
        rewards.score([gives([0.0, 6e17]), gives([0.0, 0.0])], [2.0, 1.0], AVAILABLE)
    with pytest.raises(UserError, match="add up to nan"):
        rewards.score([gives([1.0, 1.0])], [float("nan")], AVAILABLE)


def test_the_number_of_rewards():
    with pytest.raises(UserError, match="'function' returned 1 rewards for 2 completions"):
        call_all([gives([0.0])], AVAILABLE)


# ---------------------------------------------------------------- what it is called with


def test_by_its_parameters():
    seen = {}

    def some(completions, *rest, level, other=7):
        seen.update(completions=completions, rest=rest, level=level, other=other)
        return [0, 0]

    def everything(**columns):
        return [len(columns), sorted(columns) == sorted(AVAILABLE)]

    assert call_all([some, everything], AVAILABLE) == [[0.0, 0.0], [5.0, 1.0]]
    assert seen == {"completions": ["ab", "c"], "rest": (), "level": [1, 2], "other": 7}


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda completions, colour: 0, "'<lambda>' asks for colour, the rows have prompts, completions, completion_ids, finished, level$"),
        (lambda colour, **columns: 0, "'<lambda>' asks for colour, the rows have"),
        (lambda trainer_state: 0, "'<lambda>' asks for trainer_state; a training run alone has them$"),
        (lambda environments, **columns: 0, "'<lambda>' asks for environments, the rows have"),
        (lambda completions, /: 0, "'<lambda>' failed with TypeError"),
        (max, "'max': its parameters cannot be read .no signature found for builtin.*: wrap it in a function of yours$"),
    ],
)  # fmt: skip
def test_what_it_cannot_be_called_with(function, said):
    with pytest.raises(UserError, match=f"^reward function {said}"):
        call_all([function], AVAILABLE)


def test_what_it_changes_in_place_is_its_own():
    available = {
        "prompts": [[{"role": "user", "content": "1 + 1?"}]],
        "completions": [[{"role": "assistant", "content": "2"}]],
        "completion_ids": [[1, 2, 3]],
        "tests": [{"cases": [[1, 2]]}],
    }
    before = repr(available)

    def vandal(prompts, completions, completion_ids, **columns):
        completions[0][0]["content"] = prompts[0][0]["content"] = "changed"
        completion_ids[0].clear()
        columns["tests"][0]["cases"][0].append("changed")
        completions.clear()
        prompts.clear()
        return [1.0]

    assert call_all([vandal, lambda completions: [len(completions[0][0]["content"])]], available) == [[1.0], [1.0]]
    assert repr(available) == before


def test_names():
    class Length:
        def __call__(self, completions):
            return [0.0, 0.0]

    def short(completions, most):
        return [0.0, 0.0]

    partial = functools.partial(functools.partial(short), most=3)
    assert named([Length(), partial, short, short, lambda: 0]) == ["Length", "short", "short_3", "short_4", "<lambda>"]
    assert rewards.score([Length(), partial], None, AVAILABLE)[1] == {
        "reward/Length": (0.0, 2),
        "reward/short": (0.0, 2),
    }


def test_who_listens():
    def log(completions, log_metric=None):
        return [0.0, 0.0]

    assert listen([gives([]), log], "log_metric") and listen([lambda **columns: 0], "log_extra")
    assert not listen([gives([]), log, rewards.answer], "log_extra", "trainer_state")


# ---------------------------------------------------------------- what goes wrong in it


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("key"), "failed with KeyError: 'key'$"),
        (RuntimeError("first line\nsecond line"), "failed with RuntimeError: first line$"),
        (AssertionError(), "failed with AssertionError: AssertionError$"),
        (SystemExit(3), r"called sys.exit\(3\)$"),
        (asyncio.CancelledError(), "failed with CancelledError: CancelledError$"),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, str) else "",
)
def test_what_it_raises_is_said_with_its_name(error, said):
    def plain(completions):
        raise error

    async def waiting(completions):
        await asyncio.sleep(0)
        raise error

    for function in (plain, waiting):
        with pytest.raises(UserError, match=f"^reward function '{function.__name__}' {said}"):
            call_all([function], AVAILABLE)


def test_ctrl_c_is_not_its_doing():
    def interrupted(completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_all([interrupted], AVAILABLE)


def test_a_module_that_ends_the_program_when_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "reads_the_command_line.py").write_text("import sys\nsys.exit(5)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"^grpo.reward 'reads_the_command_line:f': importing .* called sys.exit\(5\)$"):
        rewards.find("reads_the_command_line:f")
    sys.modules.pop("reads_the_command_line", None)


# ---------------------------------------------------------------- async


def test_async_functions_are_awaited_together():
    """Each waits for the other: one after the other would never end."""
    events = {}

    def meeting(name, other):
        async def function(completions):
            for each in (name, other):
                events.setdefault(each, asyncio.Event())
            events[name].set()
            await asyncio.wait_for(events[other].wait(), 10)
            return [1.0, None]

        return function

    assert call_all([meeting("a", "b"), gives([3, 4]), meeting("b", "a")], AVAILABLE) == [
        [1.0, None], [3.0, 4.0], [1.0, None],
    ]  # fmt: skip


def test_whatever_gives_an_awaitable():
    async def judge(completions, most):
        return np.array([most, 0.0])

    class Judge:
        async def __call__(self, completions):
            return [2.0, 0.0]

    functions = [functools.partial(judge, most=1.0), Judge(), lambda completions: judge(completions, 3.0)]
    assert call_all(functions, AVAILABLE) == [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]


def test_what_an_async_function_returns_is_held_to_the_same():
    async def judge(completions):
        return {0: 1.0}

    with pytest.raises(UserError, match=r"'judge' must return a list of floats.*got a dict"):
        call_all([judge], AVAILABLE)


def test_a_synchronous_function_runs_in_the_thread_that_calls():
    seen = []
    call_all([lambda completions: seen.append(threading.current_thread()) or [0, 0]], AVAILABLE)
    assert seen == [threading.current_thread()]


def test_a_client_of_the_first_rollout_is_good_in_the_second():
    """What belongs to an event loop (a session, a lock, a pool of connections) outlives the rollout."""
    loops = []

    async def judge(completions):
        loops.append(asyncio.get_running_loop())
        return [0.0, 0.0]

    for _ in range(2):
        call_all([judge], AVAILABLE)
    assert loops[0] is loops[1] and not loops[0].is_closed()


def test_within_a_running_loop_as_in_a_notebook():
    async def judge(completions):
        await asyncio.sleep(0)
        return [1.0, 2.0]

    async def cell():
        return call_all([judge], AVAILABLE)

    assert asyncio.run(cell()) == [[1.0, 2.0]]


def test_one_that_fails_is_not_waited_for_by_the_others(recwarn):
    ended = []

    async def slow(completions):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("slow")

    async def broken(completions):
        raise ValueError("no key")

    started = time.perf_counter()
    with pytest.raises(UserError, match="'broken' failed with ValueError: no key"):
        call_all([slow, broken], AVAILABLE)
    with pytest.raises(UserError, match="'function' returned 1 rewards"):
        call_all([slow, gives([0.0])], AVAILABLE)  # never started: and Python does not warn of it
    assert time.perf_counter() - started < 10
    deadline = time.perf_counter() + 10
    while not ended and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert ended == ["slow"] and not [w for w in recwarn if "never awaited" in str(w.message)]
