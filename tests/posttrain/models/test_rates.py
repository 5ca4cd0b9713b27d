"""What this machine does in a second is measured, in the shapes that are asked for."""

import time
from dataclasses import replace

import torch
from kit import llama_shape

from posttrain.models import rates

SHAPE = llama_shape(adapter=1, rank=8)


def test_a_rate_is_work_over_time(monkeypatch):
    """Two layers of 32 x 64, 64 x 32 and 32 x 32 weights, 10,240 in all: 2 x 16 x 10,240 FLOP for 16 tokens, 2 x 4 x
    10,240 for 4 rows; an adapter's factors of 32 x 8, 2 x 16 x 512. Attention of two rows of 8: 4 x 2 x 8 x 8 x 32. An addition of [16, 64]: two are read and one is
    written, 4 bytes each. A softmax of [16, 500]: one and one."""

    def medians(asked, device, long_enough):
        for work in asked:
            work()
        assert long_enough == 2.0 / 5 / len(asked)  # two seconds over five rounds of each
        return [0.5] * len(asked)

    monkeypatch.setattr(rates, "_medians", medians)
    found = rates.measure(SHAPE, torch.float32, "cpu", tokens=16, length=8, rows=4)
    assert found == rates.Rates(
        products=655_360, narrow=32_768, few=163_840, attention=32_768, moved=24_576, softmax=128_000, start=0.005
    )
    # in 16 bits: 2 bytes read and 4 written, and the other way round
    assert rates.measure(SHAPE, torch.bfloat16, "cpu", tokens=16, length=8).moved == 24_576
    most = rates.measure(SHAPE, torch.float32, "cpu", tokens=10**6, length=8)
    assert most.products == 2 * 1024 * 10_240 / 0.5 and most.few == 0  # no more tokens than that
    assert rates.measure(replace(SHAPE, rank=0), torch.float32, "cpu", tokens=16, length=8).narrow == 0


def test_the_median_of_five_rounds():
    waits = iter([0.05, 0.001, 0.04, 0.001, 0.04, 0.001])  # the first is left out; then once a round
    assert 0.001 <= rates._medians([lambda: time.sleep(next(waits))], torch.device("cpu"), 0.0)[0] < 0.02


def test_on_this_machine():
    found = rates.measure(SHAPE, torch.float32, "cpu", tokens=64, length=32, rows=2, spend=0.1)
    assert found.products > found.few > 1e6 and found.moved > 1e6 and 0 < found.start < 0.1
    assert rates.measure(SHAPE, torch.float32, "cpu", tokens=64, length=32, spend=0.1).few == 0
