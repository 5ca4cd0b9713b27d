import math

import pytest
import torch

from losses.dpop import dpop_loss


def side(*values, grad=False):
    return torch.tensor(values, dtype=torch.float32, requires_grad=grad)


def test_pencil_value():
    # r_w = −12 + 11 = −1, r_l = −15 + 11 = −4, h = 3: −log σ(0.1 · (3 − 5 · 1)) = −log σ(−0.2) = log(1 + e^0.2) = 0.798139
    loss, metrics = dpop_loss(side(-12.0), side(-15.0), side(-11.0), side(-11.0), beta=0.1, penalty=5.0)
    assert loss.item() == pytest.approx(0.798139, abs=1e-6)
    means = {name: (total / count).item() for name, (total, count) in metrics.items()}
    assert means == pytest.approx(
        {"rewards_chosen": -0.1, "rewards_rejected": -0.4, "accuracy": 1.0, "margin": 0.3}, abs=1e-6
    )


def test_pencil_gradient():
    # r_w < 0: dL/d chosen = −β (1 + λ)(1 − σ(−0.2)) = −0.1 · 6 · 0.549834 = −0.3299004; rejected: +0.1 · 0.549834
    c, r, rc, rr = side(-12.0, grad=True), side(-15.0, grad=True), side(-11.0, grad=True), side(-11.0, grad=True)
    dpop_loss(c, r, rc, rr, beta=0.1, penalty=5.0)[0].backward()
    assert c.grad.item() == pytest.approx(-0.3299004, abs=1e-6)
    assert r.grad.item() == pytest.approx(0.0549834, abs=1e-6)
    assert rc.grad is None and rr.grad is None


def test_a_chosen_answer_that_has_not_fallen_pays_nothing():
    # r_w = 1, r_l = −1, h = 2: −log σ(0.2), as DPO; dL/d chosen = −0.1 · 0.450166
    c = side(-10.0, grad=True)
    loss, _ = dpop_loss(c, side(-12.0), side(-11.0), side(-11.0), beta=0.1, penalty=5.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.598139, abs=1e-6) and c.grad.item() == pytest.approx(-0.0450166, abs=1e-6)


def test_defaults():
    # β = 0.3, λ = 50: r_w = −0.1, r_l = −4, h = 3.9: 0.3 · (3.9 − 5) = −0.33: log(1 + e^0.33) = log 2.390968 = 0.871698
    loss, _ = dpop_loss(side(-11.1), side(-15.0), side(-11.0), side(-11.0))
    assert loss.item() == pytest.approx(0.871698, abs=1e-5)


def test_split_invariance():
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(5, generator=g) * 3 for _ in range(4)]
    whole, m = dpop_loss(*given, beta=0.1, penalty=5.0)
    weights = torch.full((5,), 0.2)
    parts = [
        dpop_loss(*(x[s] for x in given), beta=0.1, penalty=5.0, weights=weights[s]) for s in (slice(0, 2), slice(2, 5))
    ]
    assert sum(p[0] for p in parts).item() == pytest.approx(whole.item(), abs=1e-5)
    for name in m:
        assert sum(p[1][name][0] for p in parts).item() == pytest.approx(m[name][0].item(), abs=1e-5)
        assert sum(p[1][name][1] for p in parts).item() == m[name][1].item() == 5


def test_a_pair_of_weight_zero_may_hold_anything():
    for garbage in (math.nan, math.inf, -math.inf):
        first = side(-12.0, garbage, grad=True)
        loss, metrics = dpop_loss(
            first,
            side(-15.0, garbage),
            side(-11.0, garbage),
            side(-11.0, garbage),
            beta=0.1,
            penalty=5.0,
            weights=side(1.0, 0.0),
        )
        loss.backward()
        assert loss.item() == pytest.approx(0.798139, abs=1e-6)
        assert first.grad[1] == 0 and math.isfinite(first.grad[0])
        assert metrics["margin"][0].item() == pytest.approx(0.3, abs=1e-6) and metrics["margin"][1].item() == 1


def test_no_pair_counts():
    first = side(math.nan, grad=True)
    loss, metrics = dpop_loss(first, side(-1.0), side(-1.0), side(-1.0), beta=0.1, penalty=5.0, weights=side(0.0))
    loss.backward()
    assert loss.item() == 0 and first.grad.item() == 0 and metrics["accuracy"][1].item() == 0


def test_purity_and_dtype():
    given = [torch.tensor([-1.0, -2.0], dtype=torch.bfloat16) for _ in range(4)]
    loss, metrics = dpop_loss(*given, beta=0.1, penalty=5.0)
    assert loss.dtype == torch.float32
    assert all(x.tolist() == [-1.0, -2.0] for x in given)
    assert not any(x.requires_grad for pair in metrics.values() for x in pair)


def test_policy_equal_to_reference_is_log_2_and_penalty_0_is_dpo():
    x, y = side(-7.0, -100.0), side(-3.0, -250.0)
    loss, metrics = dpop_loss(x, y, x.clone(), y.clone())
    assert loss.item() == pytest.approx(0.693147, abs=1e-6) and metrics["accuracy"][0].item() == 0
    plain, _ = dpop_loss(side(-12.0), side(-15.0), side(-11.0), side(-11.0), beta=0.1, penalty=0.0)
    assert plain.item() == pytest.approx(0.554355, abs=1e-6)  # −log σ(0.3) = log(1 + e^−0.3) = log 1.740818


def test_refusals():
    ok = side(-1.0)
    with pytest.raises(ValueError, match="penalty must not be negative"):
        dpop_loss(ok, ok, ok, ok, penalty=-1.0)
    with pytest.raises(ValueError, match="beta"):
        dpop_loss(ok, ok, ok, ok, beta=-1.0)
    with pytest.raises(AssertionError, match="summed"):
        dpop_loss(torch.zeros(2, 3), ok, ok, ok)
