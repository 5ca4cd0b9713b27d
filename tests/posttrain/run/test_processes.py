"""Of a single process, what is told to the others is the identity. (Two: tests/loops/test_processes.py.)"""

import pytest
import torch
import torch.distributed as dist

from posttrain.run import processes


def test_alone_everything_is_the_identity(monkeypatch):
    assert not processes.several()
    assert processes.add_up(2.5, torch.device("cpu")) == 2.5
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)  # torchrun with one process
    assert not processes.several() and processes.gather("x") == ["x"] and processes.merge({1: "a"}) == {1: "a"}


def test_two_that_say_different_things(monkeypatch):
    """The collectives of torch.distributed, as the second of two processes sees them."""

    def all_reduce(tensor):
        tensor += 10  # what the other one has

    def all_gather_object(parts, mine):
        parts[:] = [{0: "theirs"}, mine]

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    assert processes.several()
    assert processes.add_up(2.5, torch.device("cpu")) == pytest.approx(12.5)
    # the variance of 9.99 and 10.01, twice: Σ x² = 400.0004, Σ x = 40. In float32 a step from there is 3e-5
    assert torch.tensor(400.0004).item() / 4 - 10**2 == pytest.approx(9.9e-5, abs=1e-6)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(2))
    squares = processes.add_up(9.99**2 + 10.01**2, torch.device("cpu"))
    assert squares / 4 - 10**2 == pytest.approx(1e-4, rel=1e-6)
    assert processes.gather({1: "mine"}) == [{0: "theirs"}, {1: "mine"}]
    assert processes.merge({1: "mine"}) == {0: "theirs", 1: "mine"}
