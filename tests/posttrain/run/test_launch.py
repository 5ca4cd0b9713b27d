import torch

from posttrain.run.launch import compute_dtype


def test_compute_dtype():
    assert compute_dtype("auto", on_cpu=True) == torch.float32
    assert compute_dtype("bfloat16", on_cpu=True) == torch.bfloat16
