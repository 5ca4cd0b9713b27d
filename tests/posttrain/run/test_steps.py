import pytest

from posttrain.config.keys import Training
from posttrain.run.steps import batched, epoch_order
from posttrain.run.training import Run
from posttrain.tokens.batch import Example, Packed


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch():
    assert epoch_order(10, 1, 2) == epoch_order(10, 1, 2) and sorted(epoch_order(10, 1, 2)) == list(range(10))
    assert len({tuple(epoch_order(10, s, e)) for s in (0, 1) for e in (0, 1)}) == 4


def test_batched_keeps_the_short_last_one():
    assert list(batched(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]


class Processes:
    """Run.micro_batches needs no more than this of a run."""

    def __init__(self, index, count, micro):
        self.accelerator = type("A", (), {"process_index": index, "num_processes": count})
        self.training = Training(micro_batch_size=micro)

    micro_batches = Run.micro_batches


@pytest.mark.parametrize("pack_to", [None, 5])
@pytest.mark.parametrize(("rows", "processes", "micro"), [(5, 1, 2), (5, 2, 2), (1, 2, 4), (7, 3, 1), (8, 2, 4)])
def test_micro_batches_hold_every_row_once_and_are_as_many_on_every_process(rows, processes, micro, pack_to):
    items = [Example.of([0], [i] * (1 + i % 3)) for i in range(rows)]
    parts = [Processes(p, processes, micro).micro_batches(items, pack_to) for p in range(processes)]
    assert len({len(p) for p in parts}) == 1 and all(1 <= len(m) <= micro for p in parts for m in p)
    if pack_to:
        assert all(isinstance(packed, Packed) and len(packed) <= 5 for p in parts for m in p for packed in m)
        parts = [[[e for packed in m for e in packed.examples] for m in p] for p in parts]
    counted = [e.input_ids[1] for p in parts for m in p for e in m if e.num_active]
    assert sorted(counted) == list(range(rows))
