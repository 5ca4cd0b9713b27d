"""Parameters that are spread over processes (FSDP2's DTensor): gathering them, filling them, sampling from them.

Everything here is the identity on a model that is not sharded. On one that is, every process has to call it at the same
time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.tokens.batch import Batch


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


def state_dict(model: nn.Module) -> dict[str, Tensor] | None:
    """The whole weights of a sharded model, on the CPU, for save_pretrained; None: the model can save itself."""
    if not is_sharded(model):
        return None
    return {name: whole(value).cpu() for name, value in model.state_dict().items()}


@contextlib.contextmanager
def gathered(policy: nn.Module) -> Iterator[None]:
    """For sampling: the whole model on every process. Gathered once, not layer by layer for each token; and the
    processes may then sample different numbers of tokens, where a gathering in each forward pass would leave one
    waiting for ever."""
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    if not parts or getattr(policy, "is_gathered", False):
        yield
        return
    _forward_once(policy)
    policy.is_gathered = True
    for module in parts:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        policy.is_gathered = False
        for module in parts:
            module.reshard()
            # the root keeps its own for backward
            module.set_reshard_after_forward(module is not parts[0], recurse=False)


@torch.no_grad()
def _forward_once(policy: nn.Module) -> None:
    """Two tokens through the root: FSDP wants to have seen it before one of its layers, and sampling calls the layers
    alone."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=next(policy.parameters()).device)
    training = policy.training
    policy.eval()
    policy(Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(2, device=ids.device)[None], ids.bool()))
    policy.train(training)


def optimizer_state(policy: nn.Module, optimizer) -> dict:
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
