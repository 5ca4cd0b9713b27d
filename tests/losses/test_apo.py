import math
from functools import partial

import pytest
import torch

from losses.apo import apo_down_loss, apo_zero_loss

BOTH = pytest.mark.parametrize("loss_fn", [apo_zero_loss, apo_down_loss])


def side(*values, grad=False):
    return torch.tensor(values, dtype=torch.float32, requires_grad=grad)


# β r_w = 0.1 · (−10 + 11) = 0.1 and β r_l = 0.1 · (−12 + 11) = −0.1; σ(0.1) = 0.524979, σ(−0.1) = 0.475021, σ(0.2) = 0.549834
# zero: 1 − 0.524979 + 0.475021 = 0.950042;  down: 0.524979 + 1 − 0.549834 = 0.975145
# zero: dL/d chosen = −β σ'(0.1) = −0.1 · 0.524979 · 0.475021 = −0.0249376, rejected the opposite (σ' is even)
# down: chosen β (σ'(0.1) − σ'(0.2)) = 0.1 · (0.249376 − 0.247517) = 0.0001859: down, too; rejected β σ'(0.2) = 0.0247517
PENCIL = [(apo_zero_loss, 0.950042, -0.0249376, 0.0249376), (apo_down_loss, 0.975145, 0.0001859, 0.0247517)]


@pytest.mark.parametrize(("loss_fn", "value", "of_chosen", "of_rejected"), PENCIL)
def test_pencil_value_and_gradient(loss_fn, value, of_chosen, of_rejected):
    c, r, rc, rr = (side(x, grad=True) for x in (-10.0, -12.0, -11.0, -11.0))
    loss, metrics = loss_fn(c, r, rc, rr, beta=0.1)
    assert loss.item() == pytest.approx(value, abs=1e-6)
    means = {name: (total / count).item() for name, (total, count) in metrics.items()}
    assert means == pytest.approx(
        {"rewards_chosen": 0.1, "rewards_rejected": -0.1, "accuracy": 1.0, "margin": 0.2}, abs=1e-6
    )
    loss.backward()
    assert c.grad.item() == pytest.approx(of_chosen, abs=1e-6) and r.grad.item() == pytest.approx(of_rejected, abs=1e-6)
    assert rc.grad is None and rr.grad is None


@BOTH
def test_split_invariance(loss_fn):
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(5, generator=g) * 3 for _ in range(4)]
    whole, m = loss_fn(*given)
    weights = torch.full((5,), 0.2)
    parts = [loss_fn(*(x[s] for x in given), weights=weights[s]) for s in (slice(0, 2), slice(2, 5))]
    assert sum(p[0] for p in parts).item() == pytest.approx(whole.item(), abs=1e-6)
    for name in m:
        assert sum(p[1][name][0] for p in parts).item() == pytest.approx(m[name][0].item(), abs=1e-6)
        assert sum(p[1][name][1] for p in parts).item() == m[name][1].item() == 5


@pytest.mark.parametrize(("loss_fn", "value"), [row[:2] for row in PENCIL])
def test_a_pair_of_weight_zero_may_hold_anything(loss_fn, value):
    c = side(-10.0, math.nan, grad=True)
    sides = side(-12.0, math.inf), side(-11.0, -math.inf), side(-11.0, math.nan)
    loss, metrics = loss_fn(c, *sides, weights=side(1.0, 0.0))
    loss.backward()
    assert loss.item() == pytest.approx(value, abs=1e-6)
    assert c.grad[1] == 0 and math.isfinite(c.grad[0])
    assert metrics["margin"][0].item() == pytest.approx(0.2, abs=1e-6) and metrics["margin"][1].item() == 1


@BOTH
def test_purity_and_dtype(loss_fn):
    given = [torch.tensor([-1.0, -2.0], dtype=torch.bfloat16) for _ in range(4)]
    loss, metrics = loss_fn(*given)
    assert loss.dtype == torch.float32 and all(x.tolist() == [-1.0, -2.0] for x in given)
    assert not any(x.requires_grad for pair in metrics.values() for x in pair)


@BOTH
def test_policy_equal_to_reference_is_1(loss_fn):
    x, y = side(-7.0, -100.0), side(-3.0, -250.0)
    loss, metrics = loss_fn(x, y, x.clone(), y.clone(), beta=0.3)
    assert loss.item() == pytest.approx(1.0, abs=1e-6) and metrics["accuracy"][0].item() == 0


def test_each_has_its_best_at_0():
    far = partial(side, 1000.0), partial(side, -1000.0)
    assert apo_zero_loss(far[0](), far[1](), side(0.0), side(0.0))[0].item() == pytest.approx(0, abs=1e-6)
    assert apo_down_loss(far[1](), side(-3000.0), side(0.0), side(0.0))[0].item() == pytest.approx(0, abs=1e-6)


@BOTH
def test_refusals(loss_fn):
    ok = side(-1.0)
    with pytest.raises(AssertionError, match="summed"):
        loss_fn(torch.zeros(2, 3), ok, ok, ok)
    with pytest.raises(ValueError, match="beta"):
        loss_fn(ok, ok, ok, ok, beta=-1.0)
