import math

import pytest
import torch

from losses.gae import explained_variance, gae, kl_shaped_rewards, whiten, whitening_stats

ON = torch.tensor([[True, True, True]])


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


def test_explained_variance_by_hand():
    # returns 1, 3 (mean 2, variance 1); errors ½, −½ (mean 0, variance ¼): 1 − ¼ / 1
    assert explained_variance((4.0, 10.0, 2.0), (0.0, 0.5, 2.0)) == pytest.approx(0.75)
    # returns 0, 4 (variance 4); errors 1, −1 (variance 1): 1 − 1 / 4
    assert explained_variance((4.0, 16.0, 2.0), (0.0, 2.0, 2.0)) == pytest.approx(0.75)
    # a constant error is no lack of knowledge of the differences: variance 0
    assert explained_variance((4.0, 10.0, 2.0), (2.0, 2.0, 2.0)) == 1.0
    # returns that are all the same: nothing to explain
    assert explained_variance((6.0, 18.0, 2.0), (0.0, 0.5, 2.0)) == 0.0
