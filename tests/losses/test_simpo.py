import math

import pytest
import torch

from losses.simpo import simpo_loss


def side(*values, grad=False):
    return torch.tensor(values, dtype=torch.float32, requires_grad=grad)


def test_pencil_value():
    # 2 · (−1 + 1.5) − 0.5 = 0.5: −log σ(0.5) = log(1 + e^−0.5) = log 1.606531 = 0.474077
    loss, metrics = simpo_loss(side(-1.0), side(-1.5), beta=2.0, gamma=0.5)
    assert loss.item() == pytest.approx(0.474077, abs=1e-6)
    means = {name: (total / count).item() for name, (total, count) in metrics.items()}
    assert means == pytest.approx(
        {"rewards_chosen": -2.0, "rewards_rejected": -3.0, "accuracy": 1.0, "margin": 1.0}, abs=1e-6
    )
    assert simpo_loss(side(-1.0), side(-1.5))[0].item() == loss.item()  # the defaults


def test_pencil_gradient():
    # −β (1 − σ(0.5)) = −2 · 0.377541 = −0.755081; rejected: the opposite
    c, r = side(-1.0, grad=True), side(-1.5, grad=True)
    simpo_loss(c, r, beta=2.0, gamma=0.5)[0].backward()
    assert c.grad.item() == pytest.approx(-0.755081, abs=1e-6) and r.grad.item() == pytest.approx(0.755081, abs=1e-6)


def test_gamma_is_what_it_has_to_lead_by():
    # the lead is β · 0.25 = 0.5 = γ: −log σ(0) = log 2, and it is a win all the same
    loss, metrics = simpo_loss(side(-1.0), side(-1.25), beta=2.0, gamma=0.5)
    assert loss.item() == pytest.approx(0.693147, abs=1e-6) and metrics["accuracy"][0].item() == 1


def test_split_invariance():
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(5, generator=g) * 3 for _ in range(2)]
    whole, m = simpo_loss(*given)
    weights = torch.full((5,), 0.2)
    parts = [simpo_loss(*(x[s] for x in given), weights=weights[s]) for s in (slice(0, 2), slice(2, 5))]
    assert sum(p[0] for p in parts).item() == pytest.approx(whole.item(), abs=1e-5)
    for name in m:
        assert sum(p[1][name][0] for p in parts).item() == pytest.approx(m[name][0].item(), abs=1e-5)
        assert sum(p[1][name][1] for p in parts).item() == m[name][1].item() == 5


def test_a_pair_of_weight_zero_may_hold_anything():
    for garbage in (math.nan, math.inf, -math.inf):
        first = side(-1.0, garbage, grad=True)
        loss, metrics = simpo_loss(first, side(-1.5, garbage), weights=side(1.0, 0.0))
        loss.backward()
        assert loss.item() == pytest.approx(0.474077, abs=1e-6)
        assert first.grad[1] == 0 and math.isfinite(first.grad[0])
        assert metrics["margin"][0].item() == pytest.approx(1.0, abs=1e-6) and metrics["margin"][1].item() == 1


def test_no_pair_counts():
    first = side(math.nan, grad=True)
    loss, metrics = simpo_loss(first, side(-1.0), weights=side(0.0))
    loss.backward()
    assert loss.item() == 0 and first.grad.item() == 0 and metrics["accuracy"][1].item() == 0


def test_purity_and_dtype():
    given = [torch.tensor([-1.0, -2.0], dtype=torch.bfloat16) for _ in range(2)]
    loss, metrics = simpo_loss(*given)
    assert loss.dtype == torch.float32
    assert all(x.tolist() == [-1.0, -2.0] for x in given)
    assert not any(x.requires_grad for pair in metrics.values() for x in pair)


def test_equal_answers_start_at_softplus_of_gamma():
    x = side(-0.3, -4.0)
    loss, metrics = simpo_loss(x, x.clone(), beta=2.0, gamma=0.5)  # log(1 + e^0.5) = log 2.648721 = 0.974077
    assert loss.item() == pytest.approx(0.974077, abs=1e-6) and metrics["accuracy"][0].item() == 0
    assert simpo_loss(side(-1.0), side(-9.0), beta=0.0, gamma=0.0)[0].item() == pytest.approx(0.693147, abs=1e-6)


def test_refusals():
    ok = side(-1.0)
    with pytest.raises(AssertionError, match=r"same shape \[B\]"):
        simpo_loss(torch.zeros(2, 3), ok)
    with pytest.raises(AssertionError, match=r"same shape \[B\]"):
        simpo_loss(ok, ok, weights=side(1.0, 1.0))
    with pytest.raises(ValueError, match="gamma must not be negative"):
        simpo_loss(ok, ok, gamma=-0.1)
    with pytest.raises(ValueError, match="beta"):
        simpo_loss(ok, ok, beta=-1.0)
