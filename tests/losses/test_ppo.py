import math

import pytest
import torch

from losses.advantages import gae, kl_shaped_rewards, whiten, whitening_stats
from losses.grpo import grpo_loss
from losses.ppo import ppo_policy_loss, ppo_value_loss

ONE = torch.ones(1, 1)
ON = torch.tensor([[True, True, True]])


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
    with pytest.raises(AssertionError, match=r"all \[B, T\]"):
        ppo_policy_loss(t, t, torch.zeros(1), t)
    with pytest.raises(AssertionError, match=r"all \[B, T\]"):
        ppo_value_loss(t, t, torch.zeros(2, 1), t)


# ---------------------------------------------------------------- generalised advantage estimation


def test_gae_by_hand():
    # δ = 0 + ½ − ½, 0 + ½ − ½, 1 + 0 − ½ = 0, 0, ½; from the end: ½, .95 · ½, .95² · ½
    a, r = gae(torch.tensor([[0.0, 0.0, 1.0]]), torch.full((1, 3), 0.5), ON, gamma=1.0, lam=0.95)
    assert a[0].tolist() == pytest.approx([0.45125, 0.475, 0.5], abs=1e-6)
    assert r[0].tolist() == pytest.approx([0.95125, 0.975, 1.0], abs=1e-6)


def test_gae_with_discount_and_bootstrap_by_hand():
    # γ = .9, λ = .5, V after the end 2: δ_1 = 0 + .9 · 2 − 1 = .8; δ_0 = 1 + .9 · 1 − ½ = 1.4; A_0 = 1.4 + .45 · .8 = 1.76
    a, r = gae(
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[0.5, 1.0]]),
        ON[:, :2],
        gamma=0.9,
        lam=0.5,
        bootstrap=torch.tensor([2.0]),
    )
    assert a[0].tolist() == pytest.approx([1.76, 0.8], abs=1e-6) and r[0].tolist() == pytest.approx(
        [2.26, 1.8], abs=1e-6
    )


@pytest.mark.parametrize("garbage", [7.0, math.nan, math.inf])
def test_padding_changes_nothing(garbage):
    r, v = torch.tensor([[0.0, 0.0, 1.0]]), torch.full((1, 3), 0.5)
    expected = gae(r, v, ON)
    pad = torch.full((1, 2), garbage)
    active = torch.tensor([[False, False, True, True, True, False, False]])
    got = gae(torch.cat([pad, r, pad], 1), torch.cat([pad, v, pad], 1), active)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a[:, 2:5], b) and (a[:, :2] == 0).all() and (a[:, 5:] == 0).all()


def test_gae_limits():
    g = torch.Generator().manual_seed(0)
    r, v = torch.randn(2, 5, generator=g), torch.randn(2, 5, generator=g)
    on = torch.ones(2, 5, dtype=torch.bool)
    # λ = 1, γ = 1: the return is the sum of what is to come;  λ = 0: one step
    torch.testing.assert_close(gae(r, v, on, lam=1.0)[1], r.flip(1).cumsum(1).flip(1), atol=1e-5, rtol=0)
    after = torch.cat([v[:, 1:], torch.zeros(2, 1)], 1)
    torch.testing.assert_close(gae(r, v, on, lam=0.0)[0], r + after - v)
    # a perfect critic has no advantage to find
    perfect = r.flip(1).cumsum(1).flip(1)
    assert gae(r, perfect, on)[0].abs().max() < 1e-5
    assert not gae(r.requires_grad_(), v.requires_grad_(), on)[0].requires_grad


def test_rows_do_not_mix():
    g = torch.Generator().manual_seed(0)
    r, v = torch.randn(3, 4, generator=g), torch.randn(3, 4, generator=g)
    on = torch.rand(3, 4, generator=g) > 0.3
    whole = gae(r, v, on)
    for i in range(3):
        assert torch.equal(whole[0][i], gae(r[i : i + 1], v[i : i + 1], on[i : i + 1])[0][0])


# ---------------------------------------------------------------- KL in the reward, whitening


def test_the_score_sits_on_the_last_action_token_and_kl_on_all():
    logps, ref = torch.tensor([[-9.0, -1.0, -2.0, -9.0]]), torch.tensor([[0.0, -1.5, -2.0, 0.0]])
    active = torch.tensor([[False, True, True, False]])
    # k1 = .5, 0: −.1 · .5, and 0 + 3
    assert kl_shaped_rewards(torch.tensor([3.0]), logps, ref, active, 0.1)[0].tolist() == pytest.approx(
        [0, -0.05, 3.0, 0]
    )
    # a row without a token gets nothing, not even its score
    nothing = kl_shaped_rewards(torch.tensor([3.0]), logps, ref, torch.zeros_like(active), 0.1)
    assert nothing.tolist() == [[0.0] * 4]
    holes = torch.tensor([[math.nan, -1.0, -2.0, math.inf]])
    assert kl_shaped_rewards(torch.tensor([3.0]), holes, ref, active, 0.1)[0].tolist() == pytest.approx(
        [0, -0.05, 3.0, 0]
    )
    assert not kl_shaped_rewards(
        torch.tensor([3.0], requires_grad=True), logps.requires_grad_(), ref, active, 0.1
    ).requires_grad


def test_whitening_has_mean_0_and_variance_1_over_the_active_ones():
    # 1, 2, 3: mean 2, population variance 2/3, ±1/√(2/3) = ±1.224745
    got = whiten(torch.tensor([[1.0, 2.0, 3.0, 99.0]]), torch.tensor([[True, True, True, False]]))
    assert got[0].tolist() == pytest.approx([-1.224745, 0.0, 1.224745, 0.0], abs=1e-6)
    x, on = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 3 + 5, torch.rand(5, 7) > 0.3
    w = whiten(x, on)[on]
    assert w.mean().abs() < 1e-5 and w.var(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_whitening_statistics_add_up_over_micro_batches():
    x, on = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.rand(6, 4) > 0.2
    stats = [
        sum(parts) for parts in zip(*(whitening_stats(x[r], on[r]) for r in (slice(0, 2), slice(2, 6))), strict=True)
    ]
    parts = torch.cat([whiten(x[r], on[r], stats=tuple(stats)) for r in (slice(0, 2), slice(2, 6))])
    torch.testing.assert_close(parts, whiten(x, on), atol=1e-6, rtol=0)
    assert whiten(x, torch.zeros_like(on)).abs().max() == 0
    constant = whiten(torch.full((1, 3), 0.1), ON)
    assert constant.abs().max() < 1e-2  # nothing to tell apart


def test_advantage_refusals():
    t = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="kl_coef must not be negative"):
        kl_shaped_rewards(torch.zeros(1), t, t, ON, -0.1)
    with pytest.raises(ValueError, match="gamma and lam"):
        gae(t, t, ON, gamma=1.5)
    with pytest.raises(AssertionError, match="active must be bool"):
        gae(t, t, ON.float())
    with pytest.raises(AssertionError, match="bootstrap"):
        gae(t, t, ON, bootstrap=torch.zeros(2))
    with pytest.raises(AssertionError, match="scores"):
        kl_shaped_rewards(torch.zeros(2), t, t, ON, 0.1)
