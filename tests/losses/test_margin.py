import math

import pytest
import torch

from losses.margin import log_ratios, pair_metrics, refuse_smoothing


def side(*values, grad=False):
    return torch.tensor(values, dtype=torch.float32, requires_grad=grad)


def test_pencil_values():
    # r_w = −10 + 11 = 1 and −9 + 9 = 0;  r_l = −12 + 11 = −1 and −8 + 6 = −2; the plain mean of two is 1/2 each
    active, weights, chosen, rejected = log_ratios(
        side(-10, -9), side(-12, -8), side(-11, -9), side(-11, -6), weights=None
    )
    assert (chosen.tolist(), rejected.tolist()) == ([1, 0], [-1, -2])
    assert active.tolist() == [True, True] and weights.tolist() == [0.5, 0.5]


def test_gradient_goes_to_the_policy_alone():
    given = [side(-10.0, grad=True) for _ in range(4)]
    _, _, chosen, rejected = log_ratios(*given, weights=None)
    (2 * chosen - 3 * rejected).sum().backward()
    assert [given[0].grad.item(), given[1].grad.item()] == [2, -3]
    assert given[2].grad is None and given[3].grad is None


def test_what_does_not_count_is_0_whatever_it_holds():
    bad = side(-1.0, math.nan)
    active, weights, chosen, rejected = log_ratios(
        bad, bad, side(-2.0, math.inf), side(-3.0, -math.inf), weights=side(0.5, 0.0)
    )
    assert active.tolist() == [True, False] and weights.tolist() == [0.5, 0.0]
    assert (chosen.tolist(), rejected.tolist()) == ([1, 0], [2, 0])


def test_metrics():
    # margins 3 − 1 = 2, 1 − 4 = −3, 0 − 0 = 0: one hit of three, Σ margins −1
    active = torch.tensor([True, True, True, False])
    metrics = pair_metrics(side(3, 1, 0, 0, grad=True), side(1, 4, 0, 0), active)
    assert {name: total.item() for name, (total, _) in metrics.items()} == {
        "rewards_chosen": 4, "rewards_rejected": 5, "accuracy": 1, "margin": -1,
    }  # fmt: skip
    assert all(count.item() == 3 and not total.requires_grad for total, count in metrics.values())


def test_refusals():
    ok = side(-1.0)
    with pytest.raises(AssertionError, match="summed"):
        log_ratios(torch.zeros(2, 3), ok, ok, ok, weights=None)
    for i in range(1, 4):
        with pytest.raises(AssertionError, match=r"same shape \[B\]"):
            log_ratios(*[side(-1.0, -1.0) if i == k else ok for k in range(4)], weights=None)
    with pytest.raises(AssertionError, match=r"weights \[2\]"):
        log_ratios(ok, ok, ok, ok, weights=side(1.0, 1.0))
    for share in (-0.1, 0.5):
        with pytest.raises(ValueError, match="label_smoothing"):
            refuse_smoothing(share)
    refuse_smoothing(0.0)
