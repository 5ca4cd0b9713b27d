import math

import pytest
import torch

from losses.cispo import cispo_loss
from losses.grpo import grpo_loss
from losses.weights import token_weights


def case(ratio, advantage, **more):
    """One token of log π_old = −1: (loss, gradient, metrics)."""
    old = torch.tensor([[-1.0]])
    policy = (old + math.log(ratio)).requires_grad_()
    loss, metrics = cispo_loss(policy, old, torch.tensor([advantage]), torch.ones(1, 1), **more)
    loss.backward()
    return loss.item(), policy.grad.item(), metrics


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (
            1.3,
            1.0,
            0.944174,
            -1.28,
        ),  # log π = log 1.3 − 1 = −0.737636: −1.28 · −0.737636; beyond the bound it still teaches
        (1.3, -2.0, -1.888348, 2.56),  # 1.28 · 2 · −0.737636
        (1.1, 1.0, 0.995159, -1.1),  # log 1.1 − 1 = −0.904690; −1.1 · −0.904690
        (0.1, -1.0, -0.330259, 0.1),  # log 0.1 − 1 = −3.302585: no lower bound
    ],
)
def test_pencil_values_and_gradients(ratio, advantage, value, gradient):
    loss, grad, metrics = case(ratio, advantage, clip_high=0.28)
    assert loss == pytest.approx(value, abs=1e-6)
    assert grad == pytest.approx(gradient, abs=1e-6)
    assert [x.item() for x in metrics["clip_fraction"]] == [float(ratio > 1.28), 1]
    assert metrics["ratio"][0].item() == pytest.approx(ratio, abs=1e-6)


def test_the_default_bound_is_five():
    assert case(7.0, 1.0)[1] == pytest.approx(-5.0, abs=1e-5)
    assert case(4.5, 1.0)[1] == pytest.approx(-4.5, abs=1e-5)


def test_kl_term():
    # A = 0, β = 1: log π = −1, π_old −1.2, π_ref −1.5: ρ k3 = e^0.2 · 0.106531 = 0.130117; k3 = 0.106531; k2 = 0.125
    policy, old, ref = torch.tensor([[-1.0]]), torch.tensor([[-1.2]]), torch.tensor([[-1.5]])
    for estimator, value in (("k3_is", 0.130117), ("k3", 0.106531), ("k2", 0.125)):
        loss, metrics = cispo_loss(
            policy, old, torch.zeros(1), torch.ones(1, 1), ref_logps=ref, kl_coef=1.0, kl_estimator=estimator
        )
        assert loss.item() == pytest.approx(value, abs=1e-6)
        assert metrics["kl"][0].item() == pytest.approx(0.106531, abs=1e-6)
        assert metrics["kl_k1"][0].item() == pytest.approx(0.5, abs=1e-6)
    half, _ = cispo_loss(policy, old, torch.zeros(1), torch.ones(1, 1), ref_logps=ref, kl_coef=0.5)
    assert half.item() == pytest.approx(0.065058, abs=1e-6)
    none, _ = cispo_loss(policy, old, torch.zeros(1), torch.ones(1, 1), ref_logps=ref)
    assert none.item() == 0


def test_split_invariance_of_value_gradient_and_metrics():
    g = torch.Generator().manual_seed(0)
    policy, old, ref = (-3 * torch.rand(5, 4, generator=g) for _ in range(3))
    active, a = torch.rand(5, 4, generator=g) < 0.7, torch.randn(5, generator=g)
    weights = token_weights(active)

    def run(pieces):
        x = policy.clone().requires_grad_()
        outs = [cispo_loss(x[p], old[p], a[p], weights[p], ref_logps=ref[p], kl_coef=0.1) for p in pieces]
        sum(o[0] for o in outs).backward()
        return sum(o[0] for o in outs).item(), x.grad, {k: sum(o[1][k][0] for o in outs).item() for k in outs[0][1]}

    whole, parts = run([slice(0, 5)]), run([slice(0, 2), slice(2, 3), slice(3, 5)])
    assert parts[0] == pytest.approx(whole[0], abs=1e-6)
    torch.testing.assert_close(parts[1], whole[1], atol=1e-7, rtol=0)
    assert parts[2] == pytest.approx(whole[2], abs=1e-5)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_garbage_in_padding_changes_nothing(garbage):
    policy = torch.tensor([[-1.0, garbage], [garbage, garbage]], requires_grad=True)
    old, ref = torch.tensor([[-1.1, garbage], [garbage] * 2]), torch.tensor([[-0.9, garbage], [garbage] * 2])
    weights = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    loss, metrics = cispo_loss(policy, old, torch.tensor([1.0, garbage]), weights, ref_logps=ref, kl_coef=0.1)
    loss.backward()
    clean, one = torch.tensor([[-1.0]], requires_grad=True), torch.ones(1, 1)
    expected, m = cispo_loss(clean, old[:1, :1], torch.ones(1), one, ref_logps=ref[:1, :1], kl_coef=0.1)
    expected.backward()
    assert loss.item() == expected.item()
    assert policy.grad.tolist() == [[clean.grad.item(), 0.0], [0.0, 0.0]]
    assert all(metrics[k][0].item() == m[k][0].item() and metrics[k][1].item() == 1 for k in m)


def test_nothing_active_is_zero_with_a_graph():
    policy = torch.full((1, 2), math.nan, requires_grad=True)
    loss, _ = cispo_loss(policy, policy.detach(), torch.zeros(1), torch.zeros(1, 2))
    loss.backward()
    assert loss.item() == 0 and policy.grad.tolist() == [[0.0, 0.0]]


def test_only_the_policy_carries_gradient():
    given = [torch.full((1, 1), -1.0, requires_grad=True) for _ in range(3)]
    a = torch.ones(1, requires_grad=True)
    cispo_loss(given[0], given[1], a, torch.ones(1, 1), ref_logps=given[2], kl_coef=1.0)[0].backward()
    assert given[0].grad is not None and given[1].grad is None and given[2].grad is None and a.grad is None


def test_on_policy_its_gradient_is_grpos():
    g = torch.Generator().manual_seed(1)
    logps, ref, a = -3 * torch.rand(4, 3, generator=g), -3 * torch.rand(4, 3, generator=g), torch.randn(4, generator=g)
    weights = token_weights(torch.tensor([[True] * 3, [True, True, False], [True, False, False], [True] * 3]))
    grads = []
    for loss_of in (cispo_loss, grpo_loss):
        x = logps.clone().requires_grad_()
        loss_of(x, logps, a, weights, ref_logps=ref, kl_coef=0.1)[0].backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-7, rtol=0)


def test_advantages_per_token_equal_advantages_per_row():
    g = torch.Generator().manual_seed(0)
    policy, old, w = -torch.rand(2, 3, generator=g), -torch.rand(2, 3, generator=g), torch.full((2, 3), 1 / 6)
    a = torch.tensor([1.0, -2.0])
    assert torch.equal(cispo_loss(policy, old, a, w)[0], cispo_loss(policy, old, a[:, None].expand(2, 3), w)[0])


def test_refusals():
    x, a, w = torch.tensor([[-1.0]]), torch.zeros(1), torch.ones(1, 1)
    with pytest.raises(ValueError, match="clip_high must not be negative"):
        cispo_loss(x, x, a, w, clip_high=-0.1)
    with pytest.raises(ValueError, match="needs ref_logps"):
        cispo_loss(x, x, a, w, kl_coef=0.1)
    with pytest.raises(ValueError, match="expected gradient of 0"):
        cispo_loss(x, x, a, w, ref_logps=x, kl_coef=0.1, kl_estimator="k1")
    with pytest.raises(AssertionError, match="advantages"):
        cispo_loss(x, x, torch.zeros(2), w)
