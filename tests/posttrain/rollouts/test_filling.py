"""Dynamic sampling: groups that teach something are gathered until the step is full, the same ones over any number of processes."""

from threading import Barrier, Thread
from types import SimpleNamespace

import pytest
import torch

from posttrain.errors import UserError
from posttrain.rollouts.answers import Answer
from posttrain.rollouts.filling import Filling
from posttrain.tokens.batch import Example

GRPO = SimpleNamespace(group_size=2, max_resamples=2)
ALIVE, WRONG, RIGHT = (0.0, 1.0), (0.0, 0.0), (1.0, 1.0)


class Processes:
    """`count` threads that play processes: run.gather and run.sum_over_processes as they are over gloo."""

    def __init__(self, count):
        self.slots, self.barrier = [None] * count, Barrier(count)

    def run(self, rank):
        return SimpleNamespace(
            gather=lambda value: self._gather(rank, value),
            sum_over_processes=lambda value: sum(self._gather(rank, value)),
        )

    def _gather(self, rank, value):
        self.slots[rank] = value
        self.barrier.wait(10)
        told = list(self.slots)
        self.barrier.wait(10)
        return told


def group(window, prompt, rewards):
    """Answers that can be told apart: their prompt's id is 10 · window + prompt."""
    return [
        Answer(Example.of([10 * window + prompt], [k]), {"sampler_logps": torch.zeros(1)}, reward, True)
        for k, reward in enumerate(rewards)
    ]


def filled(windows, count=1, grpo=GRPO):
    """windows: of each rollout, the rewards of each prompt's group -> (per process: prompts of the step; what is logged;
    rollouts that it took)."""
    processes, wanted, out = Processes(count), len(windows[0]), [None] * count

    def play(rank):
        filling, own = Filling(processes.run(rank), grpo), list(range(rank, wanted, count))
        for number, rewards in enumerate(windows):
            answers = [answer for i in own for answer in group(number, i, rewards[i])]
            told = {"reward": (sum(a.reward for a in answers), len(answers))}
            if filling.add(answers, told, own, wanted):
                answers, told = filling.take(own, wanted)
                out[rank] = [a.example.input_ids for a in answers], told, number + 1
                assert not filling.groups and filling.rollouts == 0
                return

    threads = [Thread(target=play, args=(rank,)) for rank in range(count)]
    [thread.start() for thread in threads], [thread.join(20) for thread in threads]
    return out


def prompts(ids):
    return [ids[i][0] for i in range(0, len(ids), 2)]


def test_a_step_is_full_at_once_where_every_group_teaches():
    ((ids, told, rollouts),) = filled([[ALIVE, ALIVE, ALIVE]])
    assert prompts(ids) == [0, 1, 2] and rollouts == 1
    assert [ids[0][1], ids[1][1]] == [0, 1]  # the answers of a group in their order
    assert (told["resamples"], told["groups_left_over"], told["groups_missing"]) == ((0, 1), (0, 1), (0, 1))


def test_dead_groups_give_way_to_those_of_further_prompts():
    ((ids, told, rollouts),) = filled([[ALIVE, WRONG, RIGHT], [WRONG, ALIVE, WRONG], [ALIVE, ALIVE, ALIVE]])
    assert prompts(ids) == [0, 11, 20] and rollouts == 3
    assert (told["resamples"], told["groups_left_over"], told["groups_missing"]) == ((2, 1), (2, 1), (0, 1))
    assert told["reward"] == (1 + 0 + 2 + 0 + 1 + 0 + 1 + 1 + 1, 18)  # of all that was sampled


def test_after_max_resamples_the_step_is_filled_up_with_dead_groups():
    windows = [[WRONG, RIGHT, WRONG], [WRONG, ALIVE, WRONG], [WRONG, WRONG, WRONG], [ALIVE, ALIVE, ALIVE]]
    ((ids, told, rollouts),) = filled(windows)
    assert prompts(ids) == [11, 0, 1] and rollouts == 3
    assert (told["resamples"], told["groups_missing"]) == ((2, 1), (2, 1))
    ((ids, told, rollouts),) = filled(windows, grpo=SimpleNamespace(group_size=2, max_resamples=1))
    assert rollouts == 2 and prompts(ids) == [11, 0, 1] and told["groups_missing"] == (2, 1)


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_take_the_groups_that_one_would(count):
    windows = [
        [ALIVE, WRONG, RIGHT, WRONG, WRONG],
        [WRONG, ALIVE, WRONG, RIGHT, ALIVE],
        [ALIVE, WRONG, ALIVE, ALIVE, WRONG],
    ]
    ((alone, told, rollouts),) = filled(windows)
    assert prompts(alone) == [0, 11, 14, 20, 22]
    parts = filled(windows, count)
    for rank, (ids, own_told, taken) in enumerate(parts):
        assert prompts(ids) == prompts(alone)[rank::count] and taken == rollouts
        for name in ("resamples", "groups_left_over", "groups_missing"):
            assert own_told[name] == told[name]
    assert sum(part[1]["reward"][0] for part in parts) == told["reward"][0]


def test_graded_rewards_are_refused():
    with pytest.raises(UserError, match=r"grpo\.dynamic_sampling needs a verifiable reward, 0 or 1, or -1 or 1"):
        Filling(Processes(1).run(0), GRPO).add(group(0, 0, (0.5, 1.0)), {}, [0], 1)
