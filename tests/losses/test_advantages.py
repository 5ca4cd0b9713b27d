import math

import pytest
import torch

from losses.advantages import group_relative_advantages, leave_one_out_advantages

R = torch.tensor([1.0, 0.0, 0.0, 1.0])


def test_pencil_values():
    # mean ½. Unbiased std √(4 · ¼ / 3) = .577350: .5 / (.577350 + .0001) = .865875. Population std ½: .5 / .5001 = .999800
    signs = [1, -1, -1, 1]
    assert group_relative_advantages(R, 4).tolist() == pytest.approx([0.865875 * s for s in signs], abs=1e-6)
    assert group_relative_advantages(R, 4, unbiased=False).tolist() == pytest.approx(
        [0.999800 * s for s in signs], abs=1e-6
    )
    assert group_relative_advantages(R, 4, scale="none").tolist() == [0.5 * s for s in signs]
    # the others' mean: 1/3 for a winner (0 + 0 + 1), 2/3 for a loser
    assert leave_one_out_advantages(R, 4).tolist() == pytest.approx([2 / 3 * s for s in signs], abs=1e-6)
    one_winner = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert leave_one_out_advantages(one_winner, 4).tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3], abs=1e-6)


def test_leave_one_out_is_the_group_mean_scaled():
    # A = G / (G − 1) · (r − mean): 8/7 of the plain one
    r = torch.randn(16, generator=torch.Generator().manual_seed(0))
    plain = group_relative_advantages(r, 8, scale="none")
    torch.testing.assert_close(leave_one_out_advantages(r, 8), plain * 8 / 7, atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7.7])
def test_equal_rewards_give_exactly_zero(value):
    r = torch.full((6,), value)
    for out in (
        group_relative_advantages(r, 3),
        group_relative_advantages(r, 3, scale="none"),
        leave_one_out_advantages(r, 3),
    ):
        assert out.tolist() == [0.0] * 6


def test_two_groups_never_mix():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([100.0, 300.0])
    for f in (group_relative_advantages, leave_one_out_advantages):
        assert torch.equal(f(torch.cat([a, b]), 2), torch.cat([f(a, 2), f(b, 2)]))


def test_purity_dtype_and_no_gradient():
    r = torch.tensor([1, 0, 0, 1])
    out = group_relative_advantages(r, 4)
    assert out.dtype == torch.float32 and r.tolist() == [1, 0, 0, 1]
    assert not group_relative_advantages(R.clone().requires_grad_(), 4).requires_grad


def test_refusals():
    for f in (group_relative_advantages, leave_one_out_advantages):
        with pytest.raises(ValueError, match="at least 2"):
            f(R, 1)
        with pytest.raises(ValueError, match="whole groups"):
            f(R, 3)
        with pytest.raises(ValueError, match="not finite"):
            f(torch.tensor([1.0, math.nan]), 2)
        with pytest.raises(AssertionError, match=r"\[N\]"):
            f(R.view(2, 2), 2)
    with pytest.raises(ValueError, match="scale"):
        group_relative_advantages(R, 4, scale="batch")
