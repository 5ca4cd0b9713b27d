import pytest
import torch

from posttrain.keys import Training
from posttrain.optimizer import make_optimizer, schedule


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


def test_parts_of_a_module_may_have_their_own_rate():
    module = torch.nn.ModuleDict({"policy": torch.nn.Linear(2, 2), "critic": torch.nn.Linear(2, 1)})
    groups = make_optimizer(module, Training(learning_rate=1e-3), torch.device("cpu"), {"critic.": 5e-3}).param_groups
    rates = {tuple(p.shape): g["lr"] for g in groups for p in g["params"]}
    assert rates == {(2, 2): 1e-3, (2,): 1e-3, (1, 2): 5e-3, (1,): 5e-3} and groups[0]["lr"] == 1e-3
