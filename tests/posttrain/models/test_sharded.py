"""On a whole model everything is the identity; on one that fully_shard has taken apart (here into one part), it is put
together again. (Over two processes, in a run: tests/loops/test_sharded.py.)"""

import pytest
import torch
import torch.distributed as dist
from kit import tiny_model
from torch import nn

from posttrain.models import CompletionLogps, sharded
from posttrain.tokens.batch import Example, collate


def test_of_a_whole_model_nothing_changes():
    module, norm = nn.Linear(2, 1), torch.tensor(0.5)
    assert not sharded.is_sharded(module) and sharded.state_dict(module) is None
    assert sharded.whole(norm) is norm and sharded.whole(0.5) == 0.5
    with torch.no_grad():
        sharded.put(module.weight, torch.tensor([[3.0, 4.0]]))
    assert module.weight.tolist() == [[3.0, 4.0]]
    with sharded.gathered(module):
        pass
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(torch.ones(1, 2)).backward()
    optimizer.step()
    again = torch.optim.AdamW(module.parameters(), lr=0.2)
    sharded.load_optimizer_state(module, again, sharded.optimizer_state(module, optimizer))
    # the first step's mean of gradients is (1 − .9) · 1
    assert again.state_dict()["state"][0]["exp_avg"].tolist() == [[pytest.approx(0.1)] * 2]
    assert again.param_groups[0]["lr"] == 0.1


@pytest.fixture
def mesh():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def shard(module, layers, mesh):
    from torch.distributed.fsdp import fully_shard

    for layer in layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def test_parts_become_whole(mesh):
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module = shard(module, module, mesh)
    assert sharded.is_sharded(module) and hasattr(module[0].weight, "full_tensor")
    after = sharded.state_dict(module)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    with torch.no_grad():
        sharded.put(module[0].weight, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert sharded.whole(module[0].weight).tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_the_optimisers_state_goes_by_names(mesh):
    module = shard(nn.Sequential(nn.Linear(2, 1, bias=False)), [], mesh)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 2)).backward()
    optimizer.step()
    state = sharded.optimizer_state(module, optimizer)["state"]
    assert list(state) == ["0.weight"] and state["0.weight"]["exp_avg"].tolist() == [[pytest.approx(0.1)] * 2]


def test_while_it_is_gathered_the_layers_are_whole(mesh):
    policy = CompletionLogps(tiny_model())
    batch = collate([Example.of([20, 21], [30, 31])], 0)
    with torch.no_grad():
        expected = policy(batch)[0]
    policy = shard(policy, policy.model.base_model.layers, mesh)
    layer = policy.model.base_model.layers[0].mlp.up_proj
    with sharded.gathered(policy):
        assert not hasattr(layer.weight, "full_tensor")
        with sharded.gathered(policy):  # a loop that samples inside another gathering
            pass
        assert not hasattr(layer.weight, "full_tensor") and policy.is_gathered
    assert hasattr(layer.weight, "full_tensor") and not policy.is_gathered and policy.training
    with torch.no_grad():
        torch.testing.assert_close(policy(batch)[0], expected)
