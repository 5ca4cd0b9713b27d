import pytest
import torch
from torch import nn

from posttrain.config.keys import Training
from posttrain.config.supervised import PretrainTraining
from posttrain.run.optimizer import about_warmup, make_optimizer, schedule


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


def test_wsd_stays_up_then_falls_to_a_twentieth():
    # N = 100, warm-up 4: 1/5 … 4/5, then 1 up to step 30 (0.05 + 0.95 · 70 / 70), at step 65 0.05 + 0.95 · 35/70, at the end 0.05 + 0.95/70
    assert [schedule(k, 100, 4, "wsd") for k in (0, 3, 4, 30)] == [0.2, 0.8, 1.0, 1.0]
    assert schedule(65, 100, 4, "wsd") == pytest.approx(0.525)
    assert schedule(99, 100, 4, "wsd") == pytest.approx(0.0635714)


def test_decay_on_all_reaches_the_norms():
    policy = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    for decay, expected in (("matrices", [0.1, 0.0]), ("all", [0.1, 0.1])):
        training = PretrainTraining(max_steps=1, weight_decay=0.1, decay=decay, betas=[0.8, 0.7])
        groups = make_optimizer(policy, training, torch.device("cpu")).param_groups
        assert sorted(g["weight_decay"] for g in groups) == sorted(expected)
        assert all(g["betas"] == (0.8, 0.7) for g in groups)


def test_a_run_that_is_all_warm_up_is_told():
    # steps 0 and 1 of a warm-up over 100 are 1/101 and 2/101 of the peak
    (line,) = about_warmup(2, 100, 1e-3)
    assert line == "warning: training.warmup_steps = 100 of 2 steps: the learning rate comes to 2e-05, not to 0.001"
    assert schedule(1, 2, 100, "linear") * 1e-3 == pytest.approx(1.98e-5, abs=1e-7)
    assert "warmup_steps = 1 of 1 step:" in about_warmup(1, 1, 1e-3)[0] and about_warmup(2, 1, 1e-3) == []
