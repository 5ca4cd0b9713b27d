import math

import pytest
import torch

from losses.ipo import ipo_loss


def side(*values, grad=False):
    return torch.tensor(values, dtype=torch.float32, requires_grad=grad)


def test_pencil_value():
    # sums: h = (−10 + 11) − (−12 + 11) = 2, target 1 / (2 · 0.1) = 5: (2 − 5)² = 9; β h = 0.2
    loss, metrics = ipo_loss(side(-10.0), side(-12.0), side(-11.0), side(-11.0), beta=0.1)
    assert loss.item() == pytest.approx(9.0, abs=1e-5)
    means = {name: (total / count).item() for name, (total, count) in metrics.items()}
    assert means == pytest.approx(
        {"rewards_chosen": 0.1, "rewards_rejected": -0.1, "accuracy": 1.0, "margin": 0.2}, abs=1e-6
    )


def test_the_same_answers_as_means_per_token():
    # over 4 and 3 tokens: h = (−10 + 11)/4 − (−12 + 11)/3 = 7/12 = 0.583333; (0.583333 − 5)² = 19.506944
    means = torch.tensor([[-10 / 4], [-12 / 3], [-11 / 4], [-11 / 3]], dtype=torch.float64)
    assert ipo_loss(*means, beta=0.1)[0].item() == pytest.approx(19.506944, abs=1e-6)


def test_pencil_gradient():
    # dL/d chosen = 2 (h − 5) = 2 · (2 − 5) = −6; rejected: the opposite; reference: none
    c, r, rc, rr = side(-10.0, grad=True), side(-12.0, grad=True), side(-11.0, grad=True), side(-11.0, grad=True)
    ipo_loss(c, r, rc, rr, beta=0.1)[0].backward()
    assert c.grad.item() == pytest.approx(-6, abs=1e-5) and r.grad.item() == pytest.approx(6, abs=1e-5)
    assert rc.grad is None and rr.grad is None


def test_beyond_the_target_it_pushes_back():
    # β = 0.5: the target is 1. h = 3: (3 − 1)² = 4, gradient 2 · 2 = 4: the chosen answer is to become *less* likely
    c = side(3.0, grad=True)
    loss, _ = ipo_loss(c, side(0.0), side(0.0), side(0.0), beta=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(4, abs=1e-6) and c.grad.item() == pytest.approx(4, abs=1e-6)


def test_split_invariance():
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(5, generator=g) * 3 for _ in range(4)]
    whole, m = ipo_loss(*given)
    weights = torch.full((5,), 0.2)
    parts = [ipo_loss(*(x[s] for x in given), weights=weights[s]) for s in (slice(0, 2), slice(2, 5))]
    assert sum(p[0] for p in parts).item() == pytest.approx(whole.item(), abs=1e-5)
    for name in m:
        assert sum(p[1][name][0] for p in parts).item() == pytest.approx(m[name][0].item(), abs=1e-5)
        assert sum(p[1][name][1] for p in parts).item() == m[name][1].item() == 5


def test_a_pair_of_weight_zero_may_hold_anything():
    for garbage in (math.nan, math.inf, -math.inf):
        first = side(-10.0, garbage, grad=True)
        loss, metrics = ipo_loss(
            first, side(-12.0, garbage), side(-11.0, garbage), side(-11.0, garbage), weights=side(1.0, 0.0)
        )
        loss.backward()
        assert loss.item() == pytest.approx(9.0, abs=1e-6)
        assert first.grad[1] == 0 and math.isfinite(first.grad[0])
        assert metrics["margin"][0].item() == pytest.approx(0.2, abs=1e-6) and metrics["margin"][1].item() == 1


def test_no_pair_counts():
    first = side(math.nan, grad=True)
    loss, metrics = ipo_loss(first, side(-1.0), side(-1.0), side(-1.0), weights=side(0.0))
    loss.backward()
    assert loss.item() == 0 and first.grad.item() == 0 and metrics["accuracy"][1].item() == 0


def test_purity_and_dtype():
    given = [torch.tensor([-1.0, -2.0], dtype=torch.bfloat16) for _ in range(4)]
    loss, metrics = ipo_loss(*given)
    assert loss.dtype == torch.float32
    assert all(x.tolist() == [-1.0, -2.0] for x in given)
    assert not any(x.requires_grad for pair in metrics.values() for x in pair)


def test_policy_equal_to_reference_is_the_square_of_the_target():
    x, y = side(-7.0, -100.0), side(-3.0, -250.0)
    loss, metrics = ipo_loss(x, y, x.clone(), y.clone(), beta=0.1)  # (0 − 5)² = 25
    assert loss.item() == pytest.approx(25.0, abs=1e-5)
    assert metrics["accuracy"][0].item() == 0  # a tie is not a win


def test_refusals():
    ok = side(-1.0)
    with pytest.raises(AssertionError, match="summed"):
        ipo_loss(torch.zeros(2, 3), ok, ok, ok)
    for beta in (0.0, -1.0):
        with pytest.raises(ValueError, match="beta must be above 0"):
            ipo_loss(ok, ok, ok, ok, beta=beta)
