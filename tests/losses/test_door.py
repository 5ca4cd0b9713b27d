import math

import pytest
import torch

from losses.door import at_least_float32, refuse_negative, same_shape, what_counts


def test_what_counts_is_where_the_weight_is_not_0():
    weights = torch.tensor([0.5, 0.0, -1.0], requires_grad=True)
    x = torch.tensor([2.0, math.nan, 3.0], requires_grad=True)
    active, w, y = what_counts(weights, x)
    assert active.tolist() == [True, False, True] and not w.requires_grad and y.tolist() == [2.0, 0.0, 3.0]
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 1.0]


def test_without_weights_every_row_counts_the_same():
    active, weights, _ = what_counts(None, torch.zeros(4, dtype=torch.bfloat16))
    assert active.all() and weights.tolist() == [0.25] * 4 and weights.dtype == torch.float32
    assert what_counts(None, torch.zeros(0))[1].shape == (0,)


def test_half_precision_becomes_float32_and_double_stays():
    for given, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        x = torch.ones(2, dtype=given)
        assert at_least_float32(x).dtype == expected == what_counts(torch.ones(2), x)[2].dtype


def test_shapes_are_told_with_their_names():
    same_shape("B T", {"a": torch.zeros(2, 3), "b": None, "c": torch.zeros(2, 3)})
    with pytest.raises(AssertionError, match=r"expected the same shape \[B, T\], got a \[2, 3\], b \[2, 4\]"):
        same_shape("B T", {"a": torch.zeros(2, 3), "b": torch.zeros(2, 4)})
    with pytest.raises(AssertionError, match=r"\[B\], got a \[2, 3\]"):
        same_shape("B", {"a": torch.zeros(2, 3)})


def test_negative_is_refused():
    refuse_negative("beta", 0.0)
    with pytest.raises(ValueError, match=r"beta must not be negative \(why\), got -0.1"):
        refuse_negative("beta", -0.1, " (why)")
