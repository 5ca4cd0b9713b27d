"""Parameters that are spread over processes (FSDP2's DTensor): spreading a model, gathering it, filling it, sampling
from it.

Everything but `spread` is the identity on a model that is not sharded. On one that is, every process has to call it at
the same time. configs/accelerate/fsdp2.yaml says how a run is started on such models."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from posttrain.errors import UserError
from posttrain.tokens.batch import Batch

# ---------------------------------------------------------------- spreading


def precisions(told: Any) -> tuple[Any, Any, Any]:
    """Accelerate's MixedPrecisionPolicy (None in float32), mended -> that of layers, of the root, of a scalar head.

    In bf16 Accelerate has *everything* in bf16. The weights a layer computes with may be; but the root's output is the
    log-probabilities, and rounded to eight bits a sum of 200 of them is off by nats; and gradients added up over
    processes and micro-batches in bf16 depend on how many there were. So: reduced in float32, returned in float32; from
    layer to layer as they come (a head of bf16 weights cannot read float32). A scalar head is float32 throughout, as
    under autocast."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    layers = replace(told or MixedPrecisionPolicy(), reduce_dtype=torch.float32, output_dtype=None)
    return layers, replace(layers, output_dtype=torch.float32), MixedPrecisionPolicy(reduce_dtype=torch.float32)


def spread(module: nn.Module, plugin: Any) -> nn.Module:
    """The same module, each process holding its share: layer by layer, then what is left (embeddings, head) as the
    root. plugin: Accelerate's FullyShardedDataParallelPlugin, what `accelerate launch` was told.

    A model on the CPU moves to the GPU layer by layer, and only a share of it stays. Not Accelerate.prepare: it takes
    one model with one optimiser and one precision for all its parts, but reference, critic and reward model have to be
    spread, too, and exactly as the policy is, or policy − reference would not be 0 at step 0."""
    from torch.distributed.fsdp import fully_shard

    layers, root, head = precisions(plugin.mixed_precision_policy)
    names = set(plugin.transformer_cls_names_to_wrap or getattr(module, "_no_split_modules", None) or ())
    blocks = [part for part in module.modules() if type(part).__name__ in names and part is not module]
    if not blocks:
        raise UserError(
            f"FSDP2: no layer of the model is called {' or '.join(sorted(names)) or 'anything (it names none)'}, so it cannot be spread "
            "layer by layer: set fsdp_transformer_layer_cls_to_wrap in the Accelerate config to the class of its layers"
        )
    # bitsandbytes' packed weights stay whole on every process: cut into pieces they would lose their scales
    packed = {p for p in module.parameters() if not p.is_floating_point()}
    shared = {"reshard_after_forward": plugin.reshard_after_forward, "offload_policy": plugin.cpu_offload}
    shared |= {"ignored_params": packed} if packed else {}
    for part in getattr(module, "scalar_heads", ()):
        fully_shard(part, mp_policy=head, **shared)
    for part in reversed(blocks):  # a block within a block comes first
        fully_shard(part, mp_policy=layers, **shared)
    trained = any(p.requires_grad for p in module.parameters())
    fully_shard(module, mp_policy=root, **shared | {"reshard_after_forward": not trained})  # backward begins with it
    for part in _parts(module):
        part.reshards = plugin.reshard_after_forward if part is not module else not trained
    if not trained:
        module.register_forward_hook(_forget)
    # The log-probs are a view, and nothing here writes into what a module returned.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return module


def _forget(module: Any, *_: Any) -> None:
    """After a forward pass of a frozen model: FSDP notes each until a backward pass, which here never comes."""
    if not _is_gathered(module):
        module.reset_iter_state()


def without_weights(model: nn.Module) -> nn.Module:
    """A transformers model of the same architecture on the meta device. (FSDP's modules cannot be deep-copied.)"""
    with torch.device("meta"):
        made = type(model)(copy.deepcopy(model.config))
    made.tie_weights()
    return made


@torch.no_grad()
def fill(module: nn.Module, like: nn.Module) -> None:
    """Give a module without weights, spread like `like`, its weights: share by share; nobody ever holds them whole."""
    reshard(like)
    module.to_empty(device=next(like.parameters()).device)
    ours, theirs = (dict(m.named_parameters()) | dict(m.named_buffers()) for m in (module, like))
    assert ours.keys() == theirs.keys(), f"not the same tensors: {ours.keys() ^ theirs.keys()}"
    for name, tensor in ours.items():
        tensor.copy_(theirs[name])


# ---------------------------------------------------------------- one tensor, or all


def is_sharded(module: nn.Module) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


def whole(value: Any) -> Any:
    """A tensor that is spread over the processes, gathered (a gradient norm is one, too); anything else as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def put(parameter: nn.Parameter, tensor: Tensor) -> None:
    """Copy a whole tensor into a parameter, of a sharded one into this process's part of it."""
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        where = {"device_mesh": parameter.device_mesh, "placements": parameter.placements}
        tensor = distribute_tensor(tensor.to(parameter.device), **where, src_data_rank=None)  # all have read the same
    parameter.copy_(tensor)


@torch.no_grad()
def gather_to_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole tensors, on the CPU of the first process; elsewhere {}. One at a time: no GPU holds more than one."""
    first, got = not dist.is_initialized() or dist.get_rank() == 0, {}
    once: dict[int, Tensor] = {}  # a tied head is the embeddings under another name
    for name, tensor in tensors.items():
        if id(tensor) not in once:
            gathered = whole(tensor)
            once[id(tensor)] = gathered.detach().cpu() if first else gathered.new_empty(0)
            del gathered
        if first:
            got[name] = once[id(tensor)]
    return got


def state_dict(model: nn.Module) -> dict[str, Tensor] | None:
    """What save_pretrained needs of a sharded model, on the CPU of the first process ({} elsewhere); None: the model
    can save itself. With an adapter: what is trained, and embeddings that it was put on; not the base."""
    if not is_sharded(model):
        return None
    tensors = model.state_dict(keep_vars=True)
    if hasattr(model, "peft_config"):
        layers = [model.get_input_embeddings(), getattr(model, "get_output_embeddings", lambda: None)()]
        adapted = {id(p) for layer in layers if hasattr(layer, "base_layer") for p in layer.parameters()}
        tensors = {n: t for n, t in tensors.items() if t.requires_grad or id(t) in adapted}
    return gather_to_first(tensors)


# ---------------------------------------------------------------- for a while


def _parts(module: nn.Module) -> list[Any]:
    """The modules that FSDP gathers as one, the root first."""
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _is_gathered(module: nn.Module) -> bool:
    return any(getattr(part, "is_gathered", False) for part in _parts(module))


def reshard(module: nn.Module) -> None:
    """Let go of what a forward pass has left gathered (the root waits for a backward pass, in the compute type), so
    that `parameters()` are this process's shares, in the type they are stored in."""
    for part in _parts(module):
        if not getattr(part, "is_gathered", False):
            part.reshard()


@contextlib.contextmanager
def gathered(module: nn.Module | None) -> Iterator[None]:
    """For sampling: the whole model on every process, in the type it computes in. Gathered once, not layer by layer for
    each token; and the processes may then run different forward passes, where a gathering in each would leave one
    waiting for ever.

    In the end FSDP is made to forget these passes. It gathers ahead, in the next backward pass, whatever ran before
    (with gradients or without), so processes that had run different ones would gather different layers."""
    parts = [] if module is None else _parts(module)
    if not parts or _is_gathered(module):
        yield
        return
    root = parts[0]
    if not getattr(root, "has_run", False):  # FSDP wants to have seen the root before one of its layers
        _forward_once(root)
        root.has_run = True
    for part in parts:
        part.is_gathered = True
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.is_gathered = False
            part.set_reshard_after_forward(getattr(part, "reshards", part is not root), recurse=False)
        root.reset_iter_state()  # and reshards


@torch.no_grad()
def _forward_once(root: nn.Module) -> None:
    """Two tokens through the root: sampling calls the layers alone."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=next(root.parameters()).device)
    training = root.training
    root.eval()
    if hasattr(root, "config"):  # a transformers model itself: pretraining
        root(input_ids=ids, use_cache=False)
    else:
        batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(2, device=ids.device)[None], ids.bool())
        root(batch, *(root.nothing_to_learn(batch) if hasattr(root, "nothing_to_learn") else ()))
    root.train(training)


# ---------------------------------------------------------------- the optimiser's state


def optimizer_state(policy: nn.Module, optimizer) -> dict:
    """Of a sharded model: whole tensors, on the CPU of the first process, gathered one at a time."""
    reshard(policy)  # an evaluation may have left a part of it gathered
    if not is_sharded(policy):
        return optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(policy, _inner(optimizer), options=options)


def load_optimizer_state(policy: nn.Module, optimizer, state: dict) -> None:
    if not is_sharded(policy):
        optimizer.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    set_optimizer_state_dict(policy, _inner(optimizer), state, options=StateDictOptions(full_state_dict=True))


def _inner(optimizer) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
