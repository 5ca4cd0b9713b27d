import math

import pytest
import torch

from losses.robust_dpo import robust_dpo_loss


def side(*values, grad=False):
    return torch.tensor(values, dtype=torch.float32, requires_grad=grad)


def test_pencil_value():
    # h = 0.1 · (1 + 1) = 0.2: ℓ(h) = 0.598139, ℓ(−h) = 0.798139; (0.9 · 0.598139 − 0.1 · 0.798139) / 0.8 = 0.573139
    loss, metrics = robust_dpo_loss(side(-10.0), side(-12.0), side(-11.0), side(-11.0), beta=0.1, label_smoothing=0.1)
    assert loss.item() == pytest.approx(0.573139, abs=1e-6)
    means = {name: (total / count).item() for name, (total, count) in metrics.items()}
    assert means == pytest.approx(
        {"rewards_chosen": 0.1, "rewards_rejected": -0.1, "accuracy": 1.0, "margin": 0.2}, abs=1e-6
    )


def test_pencil_gradient():
    # σ(0.2) = 0.549834: −0.1 · (0.9 · 0.450166 + 0.1 · 0.549834) / 0.8 = −0.1 · 0.460133 / 0.8 = −0.0575166
    c, r, rc, rr = side(-10.0, grad=True), side(-12.0, grad=True), side(-11.0, grad=True), side(-11.0, grad=True)
    robust_dpo_loss(c, r, rc, rr, beta=0.1, label_smoothing=0.1)[0].backward()
    assert c.grad.item() == pytest.approx(-0.0575166, abs=1e-6)
    assert r.grad.item() == pytest.approx(0.0575166, abs=1e-6)
    assert rc.grad is None and rr.grad is None


def test_swapped_labels_leave_it_unbiased():
    """One pair in four with its sides swapped, ε = ¼: the mean is the clean loss, −log σ(0.2) = 0.598139."""
    right = side(-10.0), side(-12.0), side(-11.0), side(-11.0)
    swapped = side(-12.0), side(-10.0), side(-11.0), side(-11.0)
    a, b = (robust_dpo_loss(*pair, beta=0.1, label_smoothing=0.25)[0].item() for pair in (right, swapped))
    assert 0.75 * a + 0.25 * b == pytest.approx(0.598139, abs=1e-6)


def test_it_may_be_negative():
    # h = 10: ℓ(10) = 0.0000454, ℓ(−10) = 10.0000454; (0.9 · 0.0000454 − 0.1 · 10.0000454) / 0.8 = −1.2499546
    loss, _ = robust_dpo_loss(side(10.0), side(0.0), side(0.0), side(0.0), beta=1.0, label_smoothing=0.1)
    assert loss.item() == pytest.approx(-1.2499546, abs=1e-5)


def test_split_invariance():
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(5, generator=g) * 3 for _ in range(4)]
    whole, m = robust_dpo_loss(*given, label_smoothing=0.1)
    weights = torch.full((5,), 0.2)
    parts = [
        robust_dpo_loss(*(x[s] for x in given), label_smoothing=0.1, weights=weights[s])
        for s in (slice(0, 2), slice(2, 5))
    ]
    assert sum(p[0] for p in parts).item() == pytest.approx(whole.item(), abs=1e-5)
    for name in m:
        assert sum(p[1][name][0] for p in parts).item() == pytest.approx(m[name][0].item(), abs=1e-5)
        assert sum(p[1][name][1] for p in parts).item() == m[name][1].item() == 5


def test_a_pair_of_weight_zero_may_hold_anything():
    for garbage in (math.nan, math.inf, -math.inf):
        first = side(-10.0, garbage, grad=True)
        loss, metrics = robust_dpo_loss(
            first,
            side(-12.0, garbage),
            side(-11.0, garbage),
            side(-11.0, garbage),
            label_smoothing=0.1,
            weights=side(1.0, 0.0),
        )
        loss.backward()
        assert loss.item() == pytest.approx(0.573139, abs=1e-6)
        assert first.grad[1] == 0 and math.isfinite(first.grad[0])
        assert metrics["margin"][0].item() == pytest.approx(0.2, abs=1e-6) and metrics["margin"][1].item() == 1


def test_no_pair_counts():
    first = side(math.nan, grad=True)
    loss, metrics = robust_dpo_loss(first, side(-1.0), side(-1.0), side(-1.0), label_smoothing=0.1, weights=side(0.0))
    loss.backward()
    assert loss.item() == 0 and first.grad.item() == 0 and metrics["accuracy"][1].item() == 0


def test_purity_and_dtype():
    given = [torch.tensor([-1.0, -2.0], dtype=torch.bfloat16) for _ in range(4)]
    loss, metrics = robust_dpo_loss(*given, label_smoothing=0.1)
    assert loss.dtype == torch.float32
    assert all(x.tolist() == [-1.0, -2.0] for x in given)
    assert not any(x.requires_grad for pair in metrics.values() for x in pair)


def test_policy_equal_to_reference_is_log_2_and_epsilon_0_is_dpo():
    x, y = side(-7.0, -100.0), side(-3.0, -250.0)
    loss, metrics = robust_dpo_loss(x, y, x.clone(), y.clone(), beta=0.3, label_smoothing=0.2)
    assert loss.item() == pytest.approx(0.693147, abs=1e-6) and metrics["accuracy"][0].item() == 0
    plain, _ = robust_dpo_loss(side(-10.0), side(-12.0), side(-11.0), side(-11.0), beta=0.1, label_smoothing=0.0)
    assert plain.item() == pytest.approx(0.598139, abs=1e-6)


def test_extreme_margins_stay_finite():
    c = side(0.0, grad=True)
    loss, _ = robust_dpo_loss(c, side(10_000.0), side(0.0), side(0.0), beta=1.0, label_smoothing=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(11_250.0) and c.grad.item() == pytest.approx(-1.125)  # 0.9 / 0.8


def test_refusals():
    ok = side(-1.0)
    with pytest.raises(TypeError, match="label_smoothing"):  # which share, the caller has to say
        robust_dpo_loss(ok, ok, ok, ok)
    with pytest.raises(ValueError, match="label_smoothing"):
        robust_dpo_loss(ok, ok, ok, ok, label_smoothing=0.5)
    with pytest.raises(ValueError, match="beta"):
        robust_dpo_loss(ok, ok, ok, ok, beta=-1.0, label_smoothing=0.1)
    with pytest.raises(AssertionError, match="summed"):
        robust_dpo_loss(torch.zeros(2, 3), ok, ok, ok, label_smoothing=0.1)
