"""How sure a proportion is, by hand."""

import pytest

from posttrain.evaluation.intervals import Proportion, pass_at_k, wilson


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
