import pytest
import torch

from posttrain.batch import Example
from posttrain.keys import Training
from posttrain.training import Run, compute_dtype, epoch_order, make_optimizer, schedule


def test_linear_schedule_over_three_steps():
    # step k, from 0, uses lr · (N − k) / N
    assert [schedule(k, 3, 0, "linear") for k in range(3)] == pytest.approx([1, 2 / 3, 1 / 3])


def test_warm_up_and_the_other_shapes():
    # warm-up over 2: 1/3, 2/3, then the peak; cosine half-way down is ½
    assert [schedule(k, 6, 2, "constant") for k in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert schedule(4, 6, 2, "cosine") == pytest.approx(0.5)
    assert schedule(100, 6, 0, "linear") == 0.0


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch():
    assert epoch_order(10, 1, 2) == epoch_order(10, 1, 2) and sorted(epoch_order(10, 1, 2)) == list(range(10))
    assert len({tuple(epoch_order(10, s, e)) for s in (0, 1) for e in (0, 1)}) == 4


def test_no_weight_decay_on_biases_and_norms():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    decay = {
        len(g["params"]): g["weight_decay"]
        for g in make_optimizer(module, Training(weight_decay=0.1), torch.device("cpu")).param_groups
    }
    assert decay == {1: 0.1, 3: 0.0}


def test_compute_dtype():
    assert compute_dtype("auto", on_cpu=True) == torch.float32
    assert compute_dtype("bfloat16", on_cpu=True) == torch.bfloat16


class Processes:
    """Run._cut and micro_batches need no more than this of a run."""

    def __init__(self, index, count, micro):
        self.accelerator = type("A", (), {"process_index": index, "num_processes": count})
        self.training = Training(micro_batch_size=micro)

    micro_batches, _cut = Run.micro_batches, Run._cut


@pytest.mark.parametrize(("rows", "processes", "micro"), [(5, 1, 2), (5, 2, 2), (1, 2, 4), (7, 3, 1), (8, 2, 4)])
def test_micro_batches_hold_every_row_once_and_are_as_many_on_every_process(rows, processes, micro):
    items = [Example.of([0], [i] * (1 + i % 3)) for i in range(rows)]
    parts = [Processes(p, processes, micro).micro_batches(items) for p in range(processes)]
    assert len({len(p) for p in parts}) == 1 and all(1 <= len(m) <= micro for p in parts for m in p)
    counted = [e.input_ids[1] for p in parts for m in p for e in m if e.num_active]
    assert sorted(counted) == list(range(rows))
