import math

import pytest
import torch

from losses.advantages import (
    batch_advantages,
    batch_stats,
    group_relative_advantages,
    leave_one_out_advantages,
    max_rl_advantages,
)

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


def test_pencil_values_of_max_rl():
    assert max_rl_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4).tolist() == [3.0, -1.0, -1.0, -1.0]  # ¾ / ¼, −¼ / ¼
    assert max_rl_advantages(R, 4).tolist() == [1.0, -1.0, -1.0, 1.0]  # ½ / ½
    # ¼ / ¾ and −¾ / ¾ beside a group where none is right and one where all are
    mixed = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    assert max_rl_advantages(mixed, 4).tolist() == pytest.approx([1 / 3] * 3 + [-1.0] + [0.0] * 8, abs=1e-6)


def test_pencil_values_of_the_batch():
    # two groups: ±½ and ±2; variance (¼ + ¼ + 4 + 4) / 4 = 2.125, std 1.457738
    two = torch.tensor([1.0, 0.0, 4.0, 0.0])
    assert batch_stats(two, 2) == (0.0, 8.5, 4.0)
    expected = [0.342997, -0.342997, 1.371989, -1.371989]
    assert batch_advantages(two, 2).tolist() == pytest.approx(expected, abs=1e-6)
    # one group: GRPO's with the population's std and without its 1e-4
    assert batch_advantages(R, 4).tolist() == pytest.approx([1, -1, -1, 1], abs=1e-6)
    # a dead group beside them lowers the std of all, √(8.5 / 6) = 1.190238, and gets nothing
    dead = batch_advantages(torch.cat([two, torch.tensor([0.1, 0.1])]), 2).tolist()
    assert dead == pytest.approx([0.420084, -0.420084, 1.680336, -1.680336, 0.0, 0.0], abs=1e-6) and dead[4:] == [0, 0]


def test_the_batch_may_be_spread_over_processes():
    r = torch.randn(16, generator=torch.Generator().manual_seed(0))
    stats = tuple(map(sum, zip(batch_stats(r[:4], 4), batch_stats(r[4:], 4), strict=True)))
    parts = torch.cat([batch_advantages(r[:4], 4, stats=stats), batch_advantages(r[4:], 4, stats=stats)])
    torch.testing.assert_close(parts, batch_advantages(r, 4), atol=1e-6, rtol=0)
    # what is given is believed: sum 8, squares 32, count 4: variance 32/4 − 2² = 4, std 2
    assert batch_advantages(R, 4, stats=(8.0, 32.0, 4.0)).tolist() == pytest.approx(
        [0.25, -0.25, -0.25, 0.25], abs=1e-6
    )
    assert batch_advantages(R, 4, stats=(0.0, 0.0, 0.0)).shape == (4,)


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
        batch_advantages(r, 3),
        batch_advantages(r, 3, stats=(1.0, 9.0, 6.0)),
    ):
        assert out.tolist() == [0.0] * 6 and out.dtype == torch.float32  # a root of less than nothing is not real


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_max_rl_of_all_wrong_or_all_right_is_exactly_zero(value):
    assert max_rl_advantages(torch.full((6,), value), 3).tolist() == [0.0] * 6


def test_two_groups_never_mix():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([100.0, 300.0])
    for f in (group_relative_advantages, leave_one_out_advantages):
        assert torch.equal(f(torch.cat([a, b]), 2), torch.cat([f(a, 2), f(b, 2)]))
    rare, common = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])
    both = max_rl_advantages(torch.cat([rare, common]), 3)
    assert torch.equal(both, torch.cat([max_rl_advantages(rare, 3), max_rl_advantages(common, 3)]))


def test_purity_dtype_and_no_gradient():
    r = torch.tensor([1, 0, 0, 1])
    out = group_relative_advantages(r, 4)
    assert out.dtype == torch.float32 and r.tolist() == [1, 0, 0, 1]
    assert not group_relative_advantages(R.clone().requires_grad_(), 4).requires_grad
    for f in (max_rl_advantages, batch_advantages):
        assert f(r, 4).dtype == torch.float32 and r.tolist() == [1, 0, 0, 1]
        assert not f(R.clone().requires_grad_(), 4).requires_grad


def test_refusals():
    for f in (group_relative_advantages, leave_one_out_advantages, max_rl_advantages, batch_advantages):
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
    with pytest.raises(ValueError, match=r"rewards must be 0 or 1, got 0\.5"):
        max_rl_advantages(torch.tensor([1.0, 0.5]), 2)
    with pytest.raises(ValueError, match="rewards must be 0 or 1, got -1"):
        max_rl_advantages(torch.tensor([1.0, -1.0]), 2)
