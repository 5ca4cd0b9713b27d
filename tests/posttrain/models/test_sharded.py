"""On a whole model everything is the identity; on one that fully_shard has taken apart (here into one part), it is put
together again. On two processes (two_shares.py) what is computed, held and gathered is counted. (In a run:
tests/loops/test_sharded.py.)"""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from kit import environment, fsdp2_of, tiny_model
from torch import nn

from posttrain.errors import UserError
from posttrain.models import CompletionLogps, sharded
from posttrain.models.scalar import ActorCritic, CompletionScores, as_scorer
from posttrain.run import checkpoint_files
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


# ---------------------------------------------------------------- spreading


def test_the_precision_of_each_part():
    """Accelerate has parameters, reductions and outputs in bf16, those of the root too."""
    told = fsdp2_of("bfloat16").mixed_precision_policy
    assert (told.param_dtype, told.reduce_dtype, told.output_dtype) == (torch.bfloat16,) * 3
    layers, root, head = sharded.precisions(told)
    assert (layers.param_dtype, layers.reduce_dtype, layers.output_dtype) == (torch.bfloat16, torch.float32, None)
    assert (root.param_dtype, root.reduce_dtype, root.output_dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert (head.param_dtype, head.reduce_dtype, head.output_dtype) == (None, torch.float32, None)
    assert sharded.precisions(fsdp2_of("float32").mixed_precision_policy)[0].param_dtype is None


def test_a_model_whose_layers_have_no_name_is_refused(mesh):
    plugin = SimpleNamespace(mixed_precision_policy=None, transformer_cls_names_to_wrap=["NoSuchLayer"])
    with pytest.raises(UserError, match="FSDP2: no layer of the model is called NoSuchLayer, so it cannot be spread"):
        sharded.spread(CompletionLogps(tiny_model()), plugin)


def test_what_an_evaluation_left_gathered_is_saved_as_it_is_stored(mesh):
    """The root waits for a backward pass, with embeddings and head of both networks in bf16."""
    both = ActorCritic(CompletionLogps(tiny_model()), CompletionScores(as_scorer(tiny_model(seed=1))))
    before = {name: p.detach().clone() for name, p in both.named_parameters()}
    batch = collate([Example.of([20, 21], [30, 31])], 0)
    sharded.spread(both, fsdp2_of("bfloat16"))
    optimizer = torch.optim.SGD(both.parameters(), lr=0.0, momentum=0.9)
    logps, _, values = both(batch)
    (logps.sum() + values.sum()).backward()
    optimizer.step()
    with torch.no_grad():
        both(batch)
    assert both.critic.model.get_input_embeddings().weight.dtype == torch.bfloat16
    state = sharded.optimizer_state(both, optimizer)["state"]
    assert state.keys() == before.keys()
    saved = checkpoint_files.trained(both, both.policy.model, sharded.state_dict(both.policy.model))
    assert saved.keys() == before.keys() and all(torch.equal(saved[name], before[name]) for name in before)


# ---------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    """What each of the two says."""
    out, script = tmp_path_factory.mktemp("shares"), Path(__file__).with_name("two_shares.py")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, out]
    done = subprocess.run(list(map(str, start)), env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_in_bf16_log_probs_values_and_gradients_stay_float32(shares):
    for said in (share["in_bf16"] for share in shares):
        assert said["types"] == ["torch.float32"] * 3 and said["gradients"] == "torch.float32"
        # of float32 numbers one in 2^16 is on the grid of bf16
        assert max(said["rounded"]) < 0.01
        # each process's gradients are; half of their sums are not
        assert said["gradients_rounded"] < 0.6


def test_in_bf16_the_reference_is_the_policy_and_stays_where_it_was(shares):
    for said in (share["in_bf16"] for share in shares):
        assert said["gap"] == 0 and said["logp"] < -400  # over 400 tokens: rounded, it would be off by nats
        assert said["stays"] and said["moved"] > 0.1


def test_processes_that_had_run_different_forward_passes_train_on(shares):
    assert all(math.isfinite(share["different_forward_passes"]["norm"]) for share in shares)


def half(share, more=0):
    """Of a model: its processes' shares differ by one row of a matrix of odd height."""
    return pytest.approx(share["bytes_of_the_model"]["whole"] / 2 + more, abs=500)


def test_each_process_holds_half_of_policy_and_reference(shares):
    for share in shares:
        said = share["spreading"]
        assert said["policy"] == half(share) and said["reference"] == half(share)
        # nor was it ever more while the reference was made, but for a matrix on its way
        assert said["peak"] <= said["reference"] + share["bytes_of_the_model"]["largest"]


def test_between_micro_batches_gradients_are_shares(shares):
    for share in shares:  # else 4 bytes for every parameter, on every process
        assert share["micro_batches"]["between"] == half(share)


def test_an_adapters_reference_gathers_what_a_forward_pass_does(shares):
    for said in (share["reference_of_an_adapter"] for share in shares):
        assert said["reference"] == said["policy"]
        assert said["gap"] == 0 and said["moved"] > 0.1 and said["put_back"] == 0


def test_a_checkpoint_is_gathered_tensor_by_tensor_for_the_first_process(shares):
    first, other = (share["checkpoint"] for share in shares)
    whole, largest = (shares[0]["bytes_of_the_model"][name] for name in ("whole", "largest"))
    assert first["tensors"] == [147, 147] and other["tensors"] == [0, 0]  # 16 layers of 9, embeddings, norm and head
    assert first["optimizer"] == 147 and other["optimizer"] == 0
    assert whole > 14 * largest  # embeddings and head; each layer is smaller
    # on its way a tensor is there as a share, as what was gathered, and as that without its padding
    assert other["peak"] < 5 * largest and other["optimizer_peak"] < 8 * largest
    assert first["gathered"] == pytest.approx(whole, abs=1000)  # once, and of what model/ holds no second time
    assert first["of_adapter"] == first["adapter"] < whole / 5  # the base stays where it is
