import math

import pytest
import torch

from losses.orpo import log_odds, orpo_loss


def side(*values, grad=False):
    return torch.tensor(values, dtype=torch.float32, requires_grad=grad)


HALF, QUARTER = -0.693147181, -1.386294361


def test_pencil_value():
    # odds 0.5/0.5 = 1 and 0.25/0.75 = 1/3: −log σ(log 3) = −log(3/4) = 0.287682
    loss, metrics = orpo_loss(side(HALF), side(QUARTER))
    assert loss.item() == pytest.approx(0.287682, abs=1e-6)
    means = {name: (total / count).item() for name, (total, count) in metrics.items()}
    assert means == pytest.approx(
        {"rewards_chosen": 0.0, "rewards_rejected": -1.098612, "accuracy": 1.0, "margin": 1.098612}, abs=1e-6
    )


def test_pencil_gradient():
    # 1 − σ(log 3) = 1/4; d logit p / d log p = 1 / (1 − p): −1/4 · 2 = −0.5 and +1/4 · 4/3 = 0.333333
    c, r = side(HALF, grad=True), side(QUARTER, grad=True)
    orpo_loss(c, r)[0].backward()
    assert c.grad.item() == pytest.approx(-0.5, abs=1e-6) and r.grad.item() == pytest.approx(0.333333, abs=1e-6)


def test_log_odds_where_float32_is_hard():
    # p = e^−1e-8: log p − log(1 − p) ≈ 0 − log 1e-8 = 18.420681; at −50: −50; at p = 1, finite
    x = side(-1e-8, -50.0, 0.0, grad=True)
    odds = log_odds(x)
    assert odds[:2].tolist() == pytest.approx([18.420681, -50.0], abs=1e-5) and math.isfinite(odds[2].item())
    odds.sum().backward()
    assert x.grad[0].item() == pytest.approx(1e8, rel=1e-5) and x.grad[1].item() == 1 and x.grad[2].item() == 0


def test_answers_that_are_certain_give_finite_numbers():
    c, r = side(0.0, 0.0, -1.0, grad=True), side(-1.0, 0.0, 0.0, grad=True)
    loss, _ = orpo_loss(c, r)
    loss.backward()
    assert math.isfinite(loss.item()) and torch.isfinite(c.grad).all() and torch.isfinite(r.grad).all()


def test_split_invariance():
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(5, generator=g) * 3 - 12 for _ in range(2)]
    whole, m = orpo_loss(*given)
    weights = torch.full((5,), 0.2)
    parts = [orpo_loss(*(x[s] for x in given), weights=weights[s]) for s in (slice(0, 2), slice(2, 5))]
    assert sum(p[0] for p in parts).item() == pytest.approx(whole.item(), abs=1e-5)
    for name in m:
        assert sum(p[1][name][0] for p in parts).item() == pytest.approx(m[name][0].item(), abs=1e-5)
        assert sum(p[1][name][1] for p in parts).item() == m[name][1].item() == 5


def test_a_pair_of_weight_zero_may_hold_anything():
    for garbage in (math.nan, math.inf, -math.inf):
        first = side(HALF, garbage, grad=True)
        loss, metrics = orpo_loss(first, side(QUARTER, garbage), weights=side(1.0, 0.0))
        loss.backward()
        assert loss.item() == pytest.approx(0.287682, abs=1e-6)
        assert first.grad[1] == 0 and math.isfinite(first.grad[0])
        assert metrics["margin"][0].item() == pytest.approx(1.098612, abs=1e-6) and metrics["margin"][1].item() == 1


def test_no_pair_counts():
    first = side(math.nan, grad=True)
    loss, metrics = orpo_loss(first, side(-1.0), weights=side(0.0))
    loss.backward()
    assert loss.item() == 0 and first.grad.item() == 0 and metrics["accuracy"][1].item() == 0


def test_purity_and_dtype():
    given = [torch.tensor([-1.0, -2.0], dtype=torch.bfloat16) for _ in range(2)]
    loss, metrics = orpo_loss(*given)
    assert loss.dtype == torch.float32
    assert all(x.tolist() == [-1.0, -2.0] for x in given)
    assert not any(x.requires_grad for pair in metrics.values() for x in pair)


def test_equal_answers_are_log_2():
    x = side(-0.3, -4.0)
    loss, metrics = orpo_loss(x, x.clone())
    assert loss.item() == pytest.approx(0.693147, abs=1e-6) and metrics["accuracy"][0].item() == 0


def test_refusals():
    ok = side(-1.0)
    with pytest.raises(AssertionError, match=r"same shape \[B\]"):
        orpo_loss(torch.zeros(2, 3), ok)
    for pair in ((side(0.1), ok), (ok, side(0.1))):
        with pytest.raises(ValueError, match="a mean log-prob above 0"):
            orpo_loss(*pair)
    assert orpo_loss(side(-1.0, 5.0), side(-2.0, -1.0), weights=side(1.0, 0.0))[0].item() > 0  # of one that counts
