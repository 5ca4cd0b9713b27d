import itertools

import pytest

from posttrain.run.steps import batched, cut, epoch_order, group_by_group, micro_batches, minibatches, own_share
from posttrain.tokens.batch import Example, Packed


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch():
    assert epoch_order(10, 1, 2) == epoch_order(10, 1, 2) and sorted(epoch_order(10, 1, 2)) == list(range(10))
    assert len({tuple(epoch_order(10, s, e)) for s in (0, 1) for e in (0, 1)}) == 4


def test_batched_keeps_the_short_last_one():
    assert list(batched(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("pack_to", [None, 5])
@pytest.mark.parametrize(("rows", "processes", "micro"), [(5, 1, 2), (5, 2, 2), (1, 2, 4), (7, 3, 1), (8, 2, 4)])
def test_micro_batches_hold_every_row_once_and_are_as_many_on_every_process(rows, processes, micro, pack_to):
    items = [Example.of([0], [i] * (1 + i % 3)) for i in range(rows)]
    parts = [micro_batches(items, p, processes, micro, pack_to) for p in range(processes)]
    assert len({len(p) for p in parts}) == 1 and all(1 <= len(m) <= micro for p in parts for m in p)
    if pack_to:
        assert all(isinstance(packed, Packed) and len(packed) <= 5 for p in parts for m in p for packed in m)
        parts = [[[e for packed in m for e in packed.examples] for m in p] for p in parts]
    counted = [e.input_ids[1] for p in parts for m in p for e in m if e.num_active]
    assert sorted(counted) == list(range(rows))


def test_minibatches_take_every_answer_once_a_pass_whatever_the_number_of_processes():
    updates = list(minibatches(12, 3, 2, seed=0, rollout=1))
    assert len(updates) == 6 and all(len(picked) == 4 for picked in updates)
    assert (
        sorted(itertools.chain(*updates[:3])) == sorted(itertools.chain(*updates[3:])) == list(range(12))
        and updates[:3] != updates[3:]
    )
    # six prompts of two answers, dealt out in turn to two processes: each holds its own, group by group
    for picked in updates:
        shares = [own_share(picked, list(range(p, 6, 2)), 2, 2) for p in range(2)]
        rows = [[4 * (i // 2) + 2 * p + i % 2 for i in held] for p, (held, _) in enumerate(shares)]
        assert sorted(rows[0] + rows[1]) == sorted(picked)
        assert all(most == max(len(rows[0]), len(rows[1])) for _, most in shares)


def test_rows_of_a_group_lie_together_longest_group_first():
    lengths = [3, 9, 4, 1, 8, 8, 2, 7]  # four groups of two: (3, 9), (4, 1), (8, 8), (2, 7)
    assert group_by_group([7, 0, 4, 1, 3, 5], 2, lengths.__getitem__) == [1, 0, 4, 5, 7, 3]


def test_micro_batches_in_the_order_in_which_rows_come():
    rows = [Example.of([0], [1] * n) for n in (1, 4, 2)]
    assert [[len(e) for e in m] for m in cut(rows, 3, 2, rows[0])] == [[5, 3], [2]]
    assert [[len(e) for e in m] for m in cut(rows, 3, 2, rows[0], by_length=False)] == [[2, 5], [3]]
