"""How sure a proportion is, by hand."""

import pytest

from posttrain.evaluation.intervals import (
    RESAMPLES,
    Proportion,
    bootstrap,
    mcnemar,
    paired_difference,
    pass_at_k,
    percentiles,
    wilson,
)


def test_pass_at_k():
    # n = 4, c = 1, k = 2: 1 − C(3, 2) / C(4, 2) = 1 − 3 / 6
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(4, 0, 2) == 0.0 and pass_at_k(4, 3, 2) == 1.0


def test_wilson_interval():
    # p = .5, n = 100, z = 1.96: centre .5, half-width 1.96 · √(.0025 + .00009604) / 1.038416 = .096170
    assert wilson(50, 100) == pytest.approx((0.403830, 0.596170), abs=1e-4)
    assert wilson(0, 10)[0] == 0.0 and wilson(0, 10)[1] == pytest.approx(
        0.2775, abs=1e-3
    )  # z² / (n + z²) = 3.8416 / 13.8416
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_score_prints_its_n_and_interval():
    assert str(Proportion(50, 100)) == "0.50 [0.40, 0.60] n=100"


def test_mcnemar_is_the_toss_of_a_coin():
    # 1 and 7: 2 · (C(8, 0) + C(8, 1)) / 2^8 = 2 · 9 / 256
    assert mcnemar(1, 7) == mcnemar(7, 1) == pytest.approx(18 / 256)
    assert mcnemar(0, 6) == pytest.approx(2 / 64)  # six to none is the least that is below 0.05 …
    assert mcnemar(0, 5) == pytest.approx(2 / 32)  # … five to none is not
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    assert mcnemar(0, 3000) < 1e-300


def test_the_difference_of_paired_shares():
    # Newcombe 1998, his method 10, by hand. Both 2, only A 1, only B 5, neither 2: A 3 of 10, B 7 of 10.
    # Wilson of .3: [.107789, .603222], of .7: [.396778, .892211]; B down .303222, A up .303222, B up .192211, A down .192211
    # φ: 2·2 − 1·5 = −1 (not above 0: no correction), / sqrt(3 · 7 · 7 · 3) = 21 → −.047619
    # below: sqrt(.303222² + 2 · .047619 · .303222² + .303222²) = .303222 · sqrt(2.095238) = .438910; above .192211 · 1.447494 = .278224
    low, high = paired_difference(2, 1, 5, 2)
    assert (low, high) == (pytest.approx(0.4 - 0.438910, abs=1e-5), pytest.approx(0.4 + 0.278224, abs=1e-5))
    # 10 right and 10 wrong in both: Wilson .5 ± .200706, φ = (100 − 20/2) / 100 = .9 (his correction), so .200706 · sqrt(2 − 1.8)
    assert paired_difference(10, 0, 0, 10) == (pytest.approx(-0.089758, abs=1e-6), pytest.approx(0.089758, abs=1e-6))


def test_the_bootstrap_draws_items_whole_and_pairs_together():
    draws = bootstrap([[0.0, 4.0], [1.0, 5.0]], [[1.0, 1.0], [1.0, 1.0]])
    assert draws.shape == (RESAMPLES, 2)
    assert set(draws[:, 0]) == {0.0, 2.0, 4.0} and set(draws[:, 1] - draws[:, 0]) == {1.0}  # the second is one above it
    # of two items, one draw in four holds the first twice, one the second twice: 2000 · 1/4 ± 4 · sqrt(2000 · 3/16)
    assert abs((draws[:, 0] == 0).sum() - 500) < 78
    # a weight goes with its total: {4 of 1} and {3 of 3} -> 4, 7/4 or 1, never (4 + 1)/2
    assert set(bootstrap([[4.0, 3.0]], [[1.0, 3.0]])[:, 0]) == {4.0, 1.75, 1.0}
    same = bootstrap([[0.0, 4.0]], [[1.0, 1.0]], seed=1)
    assert (same == bootstrap([[0.0, 4.0]], [[1.0, 1.0]], seed=1)).all()
    assert percentiles(bootstrap([[7.0] * 5], [[1.0] * 5])[:, 0]) == (7.0, 7.0)


def test_the_bootstraps_interval_is_as_wide_as_the_error_of_a_mean():
    # 400 items, half 0 and half 2: standard error 1 / sqrt(400) = .05, so 1 ± 1.96 · .05 = [.902, 1.098]
    low, high = percentiles(bootstrap([[0.0, 2.0] * 200], [[1.0] * 400])[:, 0])
    assert low == pytest.approx(0.902, abs=0.012) and high == pytest.approx(1.098, abs=0.012)
