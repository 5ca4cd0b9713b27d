import math

import pytest
import torch

from losses.grpo import grpo_loss
from losses.ppo import clipped_surrogate, ppo_policy_loss, ppo_value_loss

ONE = torch.ones(1, 1)


def policy_loss(ratio, advantage, eps=0.2):
    logps = torch.tensor([[math.log(ratio) - 1.0]], requires_grad=True)
    loss, metrics = ppo_policy_loss(logps, torch.tensor([[-1.0]]), torch.tensor([[advantage]]), ONE, clip_eps=eps)
    loss.backward()
    return loss.item(), logps.grad.item(), metrics


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.3, 1.0, -1.2, 0.0),  # clipped: min(1.3, 1.2)
        (1.3, -1.0, 1.3, 1.3),  # not clipped: min(−1.3, −1.2); ∂/∂logπ of −ρA is −ρA = 1.3
        (0.7, 1.0, -0.7, -0.7),
        (0.7, -1.0, 0.8, 0.0),  # clipped: min(−.7, −.8)
        (1.0, 2.0, -2.0, -2.0),  # ρ = 1: REINFORCE, gradient −A
    ],
)
def test_policy_loss_by_hand(ratio, advantage, loss, gradient):
    got = policy_loss(ratio, advantage)
    assert got[:2] == pytest.approx((loss, gradient), abs=1e-6)
    assert got[2]["clip_fraction"][0].item() == (gradient == 0.0) and got[2]["ratio"][0].item() == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient"),
    [
        (0.5, 0.0, 1.0, 0.32, 0.0),  # clip(.5, ±.2) = .2: ½ max(.25, .64) = .32, the clipped branch has no gradient
        (0.1, 0.0, 1.0, 0.405, -0.9),  # inside: ½ · .81, gradient V − R
        (-0.5, 0.0, 1.0, 1.125, -1.5),  # clipped to −.2 the error is smaller (1.44 < 2.25): the true one counts
        (1.0, 1.0, 1.0, 0.0, 0.0),
    ],
)
def test_value_loss_by_hand(value, old, target, loss, gradient):
    v = torch.tensor([[value]], requires_grad=True)
    got, metrics = ppo_value_loss(v, torch.tensor([[old]]), torch.tensor([[target]]), ONE, clip_eps=0.2)
    got.backward()
    assert (got.item(), v.grad.item()) == pytest.approx((loss, gradient), abs=1e-6)
    assert metrics["value_clip_fraction"][0].item() == (value == 0.5)
    # without the clip: ½ (V − R)²
    free = ppo_value_loss(torch.tensor([[value]]), torch.tensor([[old]]), torch.tensor([[target]]), ONE, clip_eps=None)[
        0
    ]
    assert free.item() == pytest.approx(0.5 * (value - target) ** 2, abs=1e-6)


def test_policy_loss_is_grpos_without_its_group():
    g = torch.Generator().manual_seed(0)
    logps, old, a, w = (torch.randn(3, 5, generator=g) for _ in range(4))
    w = w.abs() * (w > -0.5)
    ours = ppo_policy_loss(logps, old, a, w, clip_eps=0.3)[0]
    torch.testing.assert_close(ours, grpo_loss(logps, old, a, w, clip_low=0.3, clip_high=0.3)[0])


def test_split_invariance_garbage_and_purity():
    g = torch.Generator().manual_seed(1)
    x = [torch.randn(4, 6, generator=g) for _ in range(4)]
    weights = torch.rand(4, 6, generator=g) * (torch.rand(4, 6, generator=g) > 0.3)
    for loss in (ppo_policy_loss, ppo_value_loss):
        whole, metrics = loss(*x[:3], weights)
        parts = [loss(*(t[rows] for t in x[:3]), weights[rows]) for rows in (slice(0, 1), slice(1, 4))]
        assert sum(p[0].item() for p in parts) == pytest.approx(whole.item(), abs=1e-5)
        for key in metrics:
            assert sum(p[1][key][0].item() for p in parts) == pytest.approx(metrics[key][0].item(), abs=1e-4)
        poisoned = [torch.where(weights == 0, math.nan, t) for t in x[:3]]
        first = poisoned[0].clone().requires_grad_()
        again = loss(first, *poisoned[1:], weights)[0]
        again.backward()
        assert again.item() == pytest.approx(whole.item(), abs=1e-6) and (first.grad[weights == 0] == 0).all()
        assert torch.isfinite(first.grad).all()
        before = [t.clone() for t in x]
        others = [t.clone().requires_grad_() for t in x[1:3]]
        loss(x[0].clone().requires_grad_(), *others, weights)[0].backward()
        assert all(t.grad is None for t in others) and all(torch.equal(a, b) for a, b in zip(x, before, strict=True))


def test_refusals():
    t = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="clip_eps"):
        ppo_policy_loss(t, t, t, t, clip_eps=1.5)
    with pytest.raises(ValueError, match="clip_eps"):
        ppo_value_loss(t, t, t, t, clip_eps=-0.1)
    with pytest.raises(AssertionError, match=r"same shape \[B, T\]"):
        ppo_policy_loss(t, t, torch.zeros(1), t)
    with pytest.raises(AssertionError, match=r"same shape \[B, T\]"):
        ppo_value_loss(t, t, torch.zeros(2, 1), t)


def test_the_surrogate_says_where_it_is_clipped():
    # ρ = 1.3, A = 1: min(1.3, 1.2); ρ = 1.3, A = −1: min(−1.3, −1.2); ρ = .5, A = −1: min(−.5, −.9), clipped at 1 − .1
    per_token, is_clipped = clipped_surrogate(torch.tensor([1.3, 1.3, 0.5]), torch.tensor([1.0, -1.0, -1.0]), 0.1, 0.2)
    assert per_token.tolist() == pytest.approx([-1.2, 1.3, 0.9]) and is_clipped.tolist() == [True, False, True]


def test_kl_in_the_loss_by_hand():
    # log π = −1, log π_ref = −1.5, ρ = 1: k3 = e^−.5 − 1 + .5 = .106531; −A + β k3 = −2 + .1 · .106531
    logps = torch.tensor([[-1.0]], requires_grad=True)
    ref = torch.tensor([[-1.5]])
    loss, metrics = ppo_policy_loss(logps, logps.detach(), torch.tensor([[2.0]]), ONE, ref_logps=ref, kl_coef=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(-1.989347, abs=1e-6)
    # ∂ρA/∂logπ = −2;  ∂(ρ k3)/∂logπ = k3 + 1 − r = .106531 + 1 − .606531 = .5, the log-ratio: −2 + .1 · .5
    assert logps.grad.item() == pytest.approx(-1.95, abs=1e-6)
    assert metrics["kl"][0].item() == pytest.approx(0.106531, abs=1e-6) and metrics["kl_k1"][0].item() == 0.5
    # beside it the same as GRPO's; and with β = 0 only a metric
    grpo = grpo_loss(logps, logps.detach(), torch.tensor([[2.0]]), ONE, ref_logps=ref, kl_coef=0.1)[0]
    assert grpo.item() == loss.item()
    watched, metrics = ppo_policy_loss(logps, logps.detach(), torch.tensor([[2.0]]), ONE, ref_logps=ref)
    assert watched.item() == -2 and metrics["kl"][0].item() == pytest.approx(0.106531, abs=1e-6)


def test_kl_refusals():
    t = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="needs ref_logps"):
        ppo_policy_loss(t, t, t, t, kl_coef=0.1)
    with pytest.raises(ValueError, match="kl_coef must not be negative"):
        ppo_policy_loss(t, t, t, t, ref_logps=t, kl_coef=-0.1)
    with pytest.raises(AssertionError, match=r"ref_logps \[1, 3\]"):
        ppo_policy_loss(t, t, t, t, ref_logps=torch.zeros(1, 3))
