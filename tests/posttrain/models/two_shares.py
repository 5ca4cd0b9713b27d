"""Run by torchrun from test_sharded.py: what each of two processes computes on sharded models, and what it holds and
gathers, in bytes.

    torchrun --nproc_per_node 2 two_shares.py OUT        writes OUT/RANK.json

Bytes are counted by a TorchDispatchMode: every operation passes through it, the collectives too. A tensor's are those of
its storage; a storage is live until Python and C++ have let go of it, or FSDP has emptied it."""

import copy
import gc
import json
import sys
import weakref
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from kit import fsdp2_of, tiny_model
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from losses.logprobs import sequence_logps
from posttrain.config.keys import Lora, ModelWithReference
from posttrain.errors import clear_exit
from posttrain.models import CompletionLogps, lora, sharded
from posttrain.models.reference import frozen_reference
from posttrain.models.scalar import ActorCritic, CompletionScores, as_scorer
from posttrain.run import checkpoint_files
from posttrain.run.parallel import Parallel
from posttrain.run.training import Run
from posttrain.tokens.batch import Example, collate

BF16 = torch.bfloat16
GATHERS = ("_allgather_base_", "all_gather_into_tensor")


class Bytes(TorchDispatchMode):
    """.gathered: what all-gathers have handed out; .live(), .peak: of the storages made within it."""

    def __enter__(self):
        self.gathered = self.peak = 0
        self._made = weakref.WeakSet()
        return super().__enter__()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if DTensor in types:  # come again with what it consists of
            return NotImplemented
        out = function(*arguments, **(keywords or {}))
        name = function._schema.name.split("::")[1]
        if name.startswith(GATHERS):
            self.gathered += sum(t.nbytes for t in tree_leaves(out if name == GATHERS[1] else arguments[0]))
        given = {t.untyped_storage()._cdata for t in tree_leaves((arguments, keywords)) if isinstance(t, torch.Tensor)}
        made = (t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.device.type == "cpu")
        if new := [
            s for t in made if (s := t.untyped_storage())._cdata not in given
        ]:  # the rest: views, or written in place
            self._made.update(new)
            self.peak = max(self.peak, self.live())
        return out

    def live(self) -> int:
        return sum(storage.nbytes() for storage in self._made)


def run_of(dtype: str):
    parallel = Parallel(torch.device("cpu"), None, fsdp2_of(dtype))
    return SimpleNamespace(compute=getattr(torch, dtype), parallel=parallel)


def causal(adapter: bool = False):
    """16 layers; embeddings and head 411 × 32. With an adapter: trained before, so that it is not 0."""
    model = tiny_model(num_hidden_layers=16, max_position_embeddings=1024)
    if adapter:
        model = lora.add(model, Lora(rank=4), "somewhere")
        generator = torch.Generator().manual_seed(1)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.train()


def batch_of(length: int, rows: int = 2, seed: int = 0):
    generator = torch.Generator().manual_seed(10 * seed + dist.get_rank())
    draw = lambda n: torch.randint(11, 400, (n,), generator=generator).tolist()  # noqa: E731
    return collate([Example.of(draw(10), draw(length)) for _ in range(rows)], 0)


def rounded(x) -> float:
    """The share of numbers ≠ 0 that bf16 could hold."""
    x = x[x != 0]
    return (x.to(BF16).to(x.dtype) == x).double().mean().item()


def local(parameter_or_gradient):
    return parameter_or_gradient.to_local()


# ---------------------------------------------------------------- what is computed


def in_bf16() -> dict:
    """A full fine-tune under Accelerate's own mixed precision: policy, separate critic, copied reference."""
    run, batch = run_of("bfloat16"), batch_of(400)
    critic = CompletionScores(as_scorer(copy.deepcopy(causal())))
    torch.nn.init.normal_(critic.head.weight)
    both = run.parallel.spread(ActorCritic(CompletionLogps(causal()), critic))
    policy = run.parallel.spread(CompletionLogps(causal()))
    reference = frozen_reference(policy, ModelWithReference(name="x", adapter="none"), run)
    with torch.no_grad():
        logps, ref_logps = policy(batch)[0], reference(batch)[0]
        of_critic = both(batch)[2]
    said = {
        "types": [str(t.dtype) for t in (logps, ref_logps, of_critic)], "rounded": [rounded(logps), rounded(of_critic)],
        "gap": (sequence_logps(logps, batch.active) - sequence_logps(ref_logps, batch.active)).abs().max().item(),
        "logp": sequence_logps(logps, batch.active).mean().item(),
    }  # fmt: skip
    policy(batch)[0].sum().backward()
    gradients = torch.cat([local(p.grad).flatten() for p in policy.parameters()])
    said |= {"gradients": str(gradients.dtype), "gradients_rounded": rounded(gradients)}
    with torch.no_grad():  # the policy moves away; the reference stays
        for parameter in policy.parameters():
            local(parameter).add_(0.01)
        sharded.reshard(policy)
        said["stays"] = bool(torch.equal(reference(batch)[0], ref_logps))
        said["moved"] = (policy(batch)[0] - logps).abs().max().item()
    return said


def different_forward_passes() -> dict:
    """As at an evaluation: only one process has something to ask, then all of them train."""
    both = run_of("float32").parallel.spread(
        ActorCritic(CompletionLogps(causal()), CompletionScores(as_scorer(copy.deepcopy(causal()))))
    )
    batch = batch_of(5)
    step(both, batch)
    with torch.no_grad(), sharded.gathered(both):
        if dist.get_rank() == 0:
            both.policy(batch)
    return {"norm": step(both, batch)}


def step(policy, batch) -> float:
    logps, _, values = policy(batch)
    (logps.sum() + values.sum()).backward()
    return sum(local(p.grad).square().sum().item() for p in policy.parameters()) ** 0.5


# ---------------------------------------------------------------- what is held and gathered


def bytes_of_the_model() -> dict:
    model = causal()
    sizes = [p.nbytes for p in model.parameters()]
    return {"whole": sum(sizes), "largest": max(sizes)}


def spreading() -> dict:
    """Policy and reference, of a full fine-tune: each process keeps half of each."""
    run, model = run_of("float32"), causal()
    policy = run.parallel.spread(CompletionLogps(model))
    with Bytes() as counted:
        reference = frozen_reference(policy, ModelWithReference(name="x", adapter="none"), run)
    return {"policy": held(policy), "reference": held(reference), "peak": counted.peak}


def held(module) -> int:
    return sum(local(p).nbytes for p in module.parameters())


def micro_batches() -> dict:
    """What is left between two micro-batches of one step."""
    policy = run_of("float32").parallel.spread(CompletionLogps(causal()))
    window = [batch_of(5, seed=1), batch_of(5, seed=2)]
    policy(window[0])[0].sum().backward()  # FSDP's buffers
    policy.zero_grad()
    with Bytes() as counted:
        with Run.no_sync_unless_last(None, policy, 0, window):
            policy(window[0])[0].sum().backward()
        gc.collect()
        between = counted.live()
    return {"between": between}


def reference_of_an_adapter() -> dict:
    """One micro-batch of the reference that lays the adapter's start over the sharded policy, as DPO asks for it."""
    run = run_of("float32")
    policy = run.parallel.spread(CompletionLogps(causal(adapter=True)))
    config, batch = ModelWithReference(name="x", adapter="lora", reference="copy"), batch_of(5)
    with torch.no_grad():
        start = policy(batch)[0]
        reference = frozen_reference(policy, config, run)
        for parameter in (p for p in policy.parameters() if p.requires_grad):
            local(parameter).add_(0.05)
        sharded.reshard(policy)
        with Bytes() as by_policy:
            moved = policy(batch)[0]
        sharded.reshard(policy)
        with Bytes() as by_reference:
            said = reference(batch)[0]
        again = policy(batch)[0]
    return {
        "policy": by_policy.gathered, "reference": by_reference.gathered, "gap": (said - start).abs().max().item(),
        "moved": (moved - start).abs().max().item(), "put_back": (again - moved).abs().max().item(),
    }  # fmt: skip


def checkpoint() -> dict:
    """What is gathered of a full fine-tune, and of an adapter."""
    policy = run_of("float32").parallel.spread(CompletionLogps(causal()))
    optimizer = torch.optim.AdamW(policy.parameters())
    policy(batch_of(5))[0].sum().backward()
    optimizer.step()
    sharded.reshard(policy)
    said = {}
    with Bytes() as counted:
        of_model = sharded.state_dict(policy.model)
        trained = checkpoint_files.trained(policy, policy.model, of_model)
    said |= {"peak": counted.peak, "gathered": counted.gathered, "tensors": [len(of_model), len(trained)]}
    with Bytes() as counted:
        state = sharded.optimizer_state(policy, optimizer)
    said |= {"optimizer_peak": counted.peak, "optimizer": len(state.get("state", {}))}
    adapted = run_of("float32").parallel.spread(CompletionLogps(causal(adapter=True)))
    with Bytes() as counted:
        sharded.state_dict(adapted.model)
    said |= {
        "of_adapter": counted.gathered,
        "adapter": 4 * sum(p.numel() for p in adapted.parameters() if p.requires_grad),
    }
    return said


def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))  # one that waits for ever ends with an error
    parts = (in_bf16, different_forward_passes, bytes_of_the_model, spreading, micro_batches, reference_of_an_adapter, checkpoint)  # fmt: skip
    told = {part.__name__: part() for part in parts}
    Path(sys.argv[1], f"{dist.get_rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    with clear_exit():
        main()
