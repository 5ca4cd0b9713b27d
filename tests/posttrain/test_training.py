import pytest
import torch

from posttrain.keys import Training
from posttrain.training import compute_dtype, make_optimizer, schedule


def test_linear_schedule_over_three_steps():
    # step k, from 0, uses lr · (N − k) / N
    assert [schedule(k, 3, 0, "linear") for k in range(3)] == pytest.approx([1, 2 / 3, 1 / 3])


def test_warm_up_and_the_other_shapes():
    # warm-up over 2: 1/3, 2/3, then the peak; cosine half-way down is ½
    assert [schedule(k, 6, 2, "constant") for k in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert schedule(4, 6, 2, "cosine") == pytest.approx(0.5)
    assert schedule(100, 6, 0, "linear") == 0.0


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
