"""Whole models are left as they are; under FSDP2 each process has its share, and the gathered weights have their type."""

from types import SimpleNamespace

import torch
import torch.distributed as dist
from kit import fsdp2_of, tiny_model, whole_models

from posttrain.models import CompletionLogps
from posttrain.models.sharded import is_sharded
from posttrain.run.parallel import Parallel
from posttrain.tokens.batch import Example, collate


def test_a_whole_model_is_left_as_it_is_and_computes_under_autocast():
    module = torch.nn.Linear(2, 1)
    parallel = whole_models(lambda: torch.autocast("cpu", torch.bfloat16))
    assert parallel.spread(module) is module and not is_sharded(module)
    assert parallel.loads_on == torch.device("cpu") and parallel.fsdp is None
    with parallel.autocast():
        assert module(torch.ones(1, 2)).dtype == torch.bfloat16


def test_under_fsdp2_models_are_read_on_the_cpu_and_spread():
    state, device = SimpleNamespace(fsdp_plugin=fsdp2_of("bfloat16")), torch.device("cuda", 0)
    parallel = Parallel.of(SimpleNamespace(is_fsdp2=True, state=state, device=device, autocast=None))
    assert parallel.loads_on == torch.device("cpu")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        policy, seen = CompletionLogps(tiny_model()), []
        assert parallel.spread(policy) is policy and is_sharded(policy)
        policy.model.base_model.layers[0].register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
        with parallel.autocast(), torch.no_grad():
            logps, _ = policy(collate([Example.of([20, 21], [30, 31])], 0))
        assert seen == [torch.bfloat16] and logps.dtype == torch.float32  # autocast would have layers give float32
    finally:
        dist.destroy_process_group()
