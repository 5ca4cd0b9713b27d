import pytest
import torch

from losses.overlong import soft_overlong_punishment


def test_pencil_values():
    # L 20, C 4: nothing up to 16, then (16 − n) / 4, and −1 from 20 on, also for 21, where the slope would say −1.25
    lengths = torch.tensor([0, 16, 17, 18, 19, 20, 21, 400])
    expected = [0.0, 0.0, -0.25, -0.5, -0.75, -1.0, -1.0, -1.0]
    assert soft_overlong_punishment(lengths, 20, 4).tolist() == expected


def test_a_cache_as_long_as_the_answer_is_a_slope_from_the_first_token():
    assert soft_overlong_punishment(torch.tensor([0, 1, 4]), 4, 4).tolist() == [0.0, -0.25, -1.0]


def test_purity_and_type():
    lengths = torch.tensor([3, 9])
    out = soft_overlong_punishment(lengths, 10, 2)
    assert out.dtype == torch.float32 and out.tolist() == [0.0, -0.5] and lengths.tolist() == [3, 9]
    assert soft_overlong_punishment(torch.tensor([], dtype=torch.long), 10, 2).tolist() == []


def test_refusals():
    for cache in (0, -1, 11):
        with pytest.raises(ValueError, match="cache must lie in 1 … max_length = 10"):
            soft_overlong_punishment(torch.tensor([3]), 10, cache)
    with pytest.raises(AssertionError, match=r"\[N\]"):
        soft_overlong_punishment(torch.tensor([[3]]), 10, 2)
