import math

import pytest
import torch

from losses.kto import kto_kl, kto_loss

GOOD, BAD = torch.tensor([True]), torch.tensor([False])


def side(*values, grad=False):
    return torch.tensor(values, dtype=torch.float32, requires_grad=grad)


def test_pencil_values():
    # z0 = 0.1, β = 0.1.  r = 1, good: 1 − σ(0.1 · 0.9) = 1 − 0.522485 = 0.477515
    # r = −0.5, bad: 1 − σ(0.1 · (0.1 + 0.5)) = 1 − σ(0.06) = 0.485004
    assert kto_loss(side(-9.0), side(-10.0), GOOD, 0.1)[0].item() == pytest.approx(0.477515, abs=1e-6)
    assert kto_loss(side(-10.5), side(-10.0), BAD, 0.1)[0].item() == pytest.approx(0.485004, abs=1e-6)
    loss, metrics = kto_loss(side(-9.0, -10.5), side(-10.0, -10.0), torch.tensor([True, False]), torch.tensor(0.1))
    assert loss.item() == pytest.approx(0.481260, abs=1e-6)  # the mean of the two
    told = {name: (total.item(), count.item()) for name, (total, count) in metrics.items()}
    assert told["rewards_chosen"] == (pytest.approx(0.1), 1) and told["rewards_rejected"] == (pytest.approx(-0.05), 1)
    assert told["accuracy"] == (2, 2)


def test_pencil_gradient():
    # good: −β σ'(0.09) = −0.1 · 0.522485 · 0.477515 = −0.0249495; bad: +0.1 · σ'(0.06) = 0.1 · 0.514996 · 0.485004 = 0.0249775
    policy, ref, kl = side(-9.0, -10.5, grad=True), side(-10.0, -10.0, grad=True), torch.tensor(0.1, requires_grad=True)
    kto_loss(policy, ref, torch.tensor([True, False]), kl, weights=side(1.0, 1.0))[0].backward()
    assert policy.grad.tolist() == pytest.approx([-0.0249495, 0.0249775], abs=1e-6)
    assert ref.grad is None and kl.grad is None


def test_weights_of_the_two_kinds():
    # λ_D = 2, λ_U = 3: 2 · 0.477515 = 0.955030 and 3 · 0.485004 = 1.455013; β = 0.2: 1 − σ(0.18) = 0.455121
    more = {"desirable_weight": 2.0, "undesirable_weight": 3.0}
    assert kto_loss(side(-9.0), side(-10.0), GOOD, 0.1, **more)[0].item() == pytest.approx(0.955030, abs=1e-5)
    assert kto_loss(side(-10.5), side(-10.0), BAD, 0.1, **more)[0].item() == pytest.approx(1.455013, abs=1e-5)
    assert kto_loss(side(-9.0), side(-10.0), GOOD, 0.1, beta=0.2)[0].item() == pytest.approx(0.455121, abs=1e-6)


def test_a_gain_is_what_lies_beyond_z0():
    """r = 0.3 with z0 = 0.5: a good answer that rose less than the model drifted is no hit; a bad one is."""
    for label, hits in ((GOOD, 0), (BAD, 1)):
        assert kto_loss(side(-9.7), side(-10.0), label, 0.5)[1]["accuracy"][0].item() == hits


def test_z0_pencil():
    # mismatched r = −9.7 + 10 = 0.3 and −11.1 + 11 = −0.1: mean 0.1; −0.3 and −0.1: mean −0.2, clamped
    on = torch.tensor([True, True])
    assert kto_kl(side(-9.7, -11.1), side(-10.0, -11.0), on).item() == pytest.approx(0.1, abs=1e-6)
    assert kto_kl(side(-10.3, -11.1), side(-10.0, -11.0), on).item() == 0


def test_z0_leaves_out_what_is_not_active_and_carries_no_gradient():
    policy = side(-9.0, math.nan, -8.0, grad=True)
    z0 = kto_kl(policy, side(-10.0, math.inf, -10.0), torch.tensor([True, False, True]))
    assert z0.item() == 1.5 and not z0.requires_grad  # (1 + 2) / 2
    assert kto_kl(side(math.nan), side(0.0), torch.tensor([False])).item() == 0
    assert kto_kl(policy.bfloat16(), side(-10.0, 0.0, -10.0), torch.tensor([True, False, False])).dtype == torch.float32


def test_split_invariance():
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(5, generator=g) * 3, torch.randn(5, generator=g), torch.rand(5, generator=g) > 0.5]
    whole, m = kto_loss(*given, 0.2, undesirable_weight=1.5)
    weights = torch.full((5,), 0.2)
    cuts = (slice(0, 2), slice(2, 5))
    parts = [kto_loss(*(x[s] for x in given), 0.2, undesirable_weight=1.5, weights=weights[s]) for s in cuts]
    assert sum(p[0] for p in parts).item() == pytest.approx(whole.item(), abs=1e-6)
    for name in m:
        assert sum(p[1][name][0] for p in parts).item() == pytest.approx(m[name][0].item(), abs=1e-6)
        assert sum(p[1][name][1] for p in parts).item() == m[name][1].item()
    assert m["rewards_chosen"][1] + m["rewards_rejected"][1] == m["accuracy"][1] == 5


@pytest.mark.parametrize("label", [True, False])
def test_a_row_of_weight_zero_may_hold_anything(label):
    policy = side(-9.0, math.nan, grad=True)
    labels = torch.tensor([True, label])
    loss, metrics = kto_loss(policy, side(-10.0, math.inf), labels, 0.1, weights=side(1.0, 0.0))
    loss.backward()
    assert loss.item() == pytest.approx(0.477515, abs=1e-6) and policy.grad[1] == 0
    assert [float(x) for x in metrics["accuracy"]] == [1, 1]
    assert metrics["rewards_chosen"][1].item() == 1 and metrics["rewards_rejected"][1].item() == 0


def test_purity_and_dtype():
    given = [torch.tensor([-1.0, -2.0], dtype=torch.bfloat16) for _ in range(2)]
    loss, metrics = kto_loss(*given, torch.tensor([True, False]), 0.0)
    assert loss.dtype == torch.float32 and all(x.tolist() == [-1.0, -2.0] for x in given)
    assert not any(x.requires_grad for pair in metrics.values() for x in pair)


def test_at_the_start_every_row_is_half_its_weight():
    x = side(-7.0, -100.0)
    loss, metrics = kto_loss(x, x.clone(), torch.tensor([True, False]), 0.0, desirable_weight=3.0)  # (1.5 + 0.5) / 2
    assert loss.item() == pytest.approx(1.0, abs=1e-6) and metrics["accuracy"][0].item() == 0


def test_refusals():
    ok = side(-1.0)
    with pytest.raises(AssertionError, match=r"desirable \[B\] bool"):
        kto_loss(ok, ok, side(1.0), 0.0)
    with pytest.raises(AssertionError, match="one number for the whole step"):
        kto_loss(ok, ok, GOOD, side(0.0))
    with pytest.raises(AssertionError, match=r"same shape \[B\]"):
        kto_loss(torch.zeros(2, 3), ok, GOOD, 0.0)
    for name in ("beta", "desirable_weight", "undesirable_weight"):
        with pytest.raises(ValueError, match=name):
            kto_loss(ok, ok, GOOD, 0.0, **{name: -1.0})
    with pytest.raises(AssertionError, match=r"active \[N\] bool"):
        kto_kl(ok, ok, side(1.0))
    with pytest.raises(AssertionError, match=r"same shape \[N\]"):
        kto_kl(ok, side(1.0, 1.0), GOOD)
