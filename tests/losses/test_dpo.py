import math

import pytest
import torch

from losses.dpo import dpo_loss


def side(*values, grad=False):
    return torch.tensor(values, dtype=torch.float32, requires_grad=grad)


def test_pencil_value():
    # h = 0.1 · ((−10 + 11) − (−12 + 11)) = 0.1 · (1 + 1) = 0.2;  −log σ(0.2) = log(1 + e^−0.2) = log 1.818731 = 0.598139
    loss, metrics = dpo_loss(side(-10.0), side(-12.0), side(-11.0), side(-11.0), beta=0.1)
    assert loss.item() == pytest.approx(0.598139, abs=1e-6)
    means = {name: (total / count).item() for name, (total, count) in metrics.items()}
    assert means == pytest.approx(
        {"rewards_chosen": 0.1, "rewards_rejected": -0.1, "accuracy": 1.0, "margin": 0.2}, abs=1e-6
    )


def test_pencil_gradient():
    # dL/d chosen = −β (1 − σ(h)) = −0.1 · (1 − σ(0.2)) = −0.1 · 0.450166 = −0.045017; rejected: the opposite; reference: none
    c, r, rc, rr = side(-10.0, grad=True), side(-12.0, grad=True), side(-11.0, grad=True), side(-11.0, grad=True)
    dpo_loss(c, r, rc, rr, beta=0.1)[0].backward()
    assert c.grad.item() == pytest.approx(-0.0450166, abs=1e-6)
    assert r.grad.item() == pytest.approx(0.0450166, abs=1e-6)
    assert rc.grad is None and rr.grad is None


def test_policy_equal_to_reference_is_log_2():
    x, y = side(-7.0, -100.0), side(-3.0, -250.0)
    loss, metrics = dpo_loss(x, y, x.clone(), y.clone(), beta=0.3)
    assert loss.item() == pytest.approx(0.693147, abs=1e-6)
    assert metrics["accuracy"][0].item() == 0  # a tie is not a win


def test_beta_zero_is_log_2_with_no_gradient():
    c = side(-1.0, grad=True)
    loss, _ = dpo_loss(c, side(-50.0), side(-2.0), side(-3.0), beta=0.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.693147, abs=1e-6) and c.grad.item() == 0


def test_label_smoothing():
    # h = 0.2, ε = 0.1: 0.9 · 0.598139 + 0.1 · (0.598139 + 0.2) = 0.598139 + 0.02 = 0.618139
    loss, _ = dpo_loss(side(-10.0), side(-12.0), side(-11.0), side(-11.0), beta=0.1, label_smoothing=0.1)
    assert loss.item() == pytest.approx(0.618139, abs=1e-6)


def test_extreme_margins_stay_finite():
    c = side(0.0, grad=True)
    loss, _ = dpo_loss(c, side(10_000.0), side(0.0), side(0.0), beta=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(10_000.0) and c.grad.item() == pytest.approx(-1.0)


def test_split_invariance():
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(5, generator=g) * 3 for _ in range(4)]
    whole, m = dpo_loss(*given)
    weights = torch.full((5,), 0.2)
    parts = [dpo_loss(*(x[s] for x in given), weights=weights[s]) for s in (slice(0, 2), slice(2, 5))]
    assert sum(p[0] for p in parts).item() == pytest.approx(whole.item(), abs=1e-6)
    for name in m:
        assert sum(p[1][name][0] for p in parts).item() == pytest.approx(m[name][0].item(), abs=1e-6)
        assert sum(p[1][name][1] for p in parts).item() == m[name][1].item() == 5


def test_a_pair_of_weight_zero_may_hold_anything():
    c = side(-10.0, math.nan, grad=True)
    loss, metrics = dpo_loss(
        c, side(-12.0, math.inf), side(-11.0, -math.inf), side(-11.0, math.nan), weights=side(1.0, 0.0)
    )
    loss.backward()
    assert loss.item() == pytest.approx(0.598139, abs=1e-6)
    assert c.grad[1] == 0 and math.isfinite(c.grad[0])
    assert metrics["margin"][0].item() == pytest.approx(0.2, abs=1e-6) and metrics["margin"][1].item() == 1


def test_no_pair_counts():
    c = side(math.nan, grad=True)
    loss, metrics = dpo_loss(c, side(-1.0), side(-1.0), side(-1.0), weights=side(0.0))
    loss.backward()
    assert loss.item() == 0 and c.grad.item() == 0 and metrics["accuracy"][1].item() == 0


def test_purity_and_dtype():
    given = [torch.tensor([-1.0, -2.0], dtype=torch.bfloat16) for _ in range(4)]
    loss, metrics = dpo_loss(*given)
    assert loss.dtype == torch.float32
    assert all(x.tolist() == [-1.0, -2.0] for x in given)
    assert not any(x.requires_grad for pair in metrics.values() for x in pair)


def test_refusals():
    ok = side(-1.0)
    with pytest.raises(AssertionError, match="summed"):
        dpo_loss(torch.zeros(2, 3), ok, ok, ok)
    with pytest.raises(ValueError, match="label_smoothing"):
        dpo_loss(ok, ok, ok, ok, label_smoothing=0.7)
    with pytest.raises(ValueError, match="beta"):
        dpo_loss(ok, ok, ok, ok, beta=-1.0)
