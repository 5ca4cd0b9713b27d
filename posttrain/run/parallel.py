"""How the models of a run lie over its processes: whole on each (one process, or DDP), or spread over all (FSDP2)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from posttrain.models import sharded


class Parallel:
    """What differs between the two, for every model of a run: policy, critic, reference and reward model alike."""

    def __init__(self, device: torch.device, autocast: Callable[[], Any], fsdp: Any = None):
        """fsdp: of FSDP2, what Accelerate was told (its FullyShardedDataParallelPlugin)."""
        self.fsdp, self._autocast = fsdp, autocast
        # Where weights are read to before they are spread: not to a GPU, which need never hold a model whole.
        self.loads_on = device if fsdp is None else torch.device("cpu")

    @classmethod
    def of(cls, accelerator: Accelerator) -> Parallel:
        fsdp = accelerator.state.fsdp_plugin if accelerator.is_fsdp2 else None
        return cls(accelerator.device, accelerator.autocast, fsdp)

    def spread(self, module: nn.Module) -> nn.Module:
        """The same module; under FSDP2 each process is left with its share."""
        return module if self.fsdp is None else sharded.spread(module, self.fsdp)

    def autocast(self) -> contextlib.AbstractContextManager:
        """For a forward pass that is not the prepared policy's own. Under FSDP2 the gathered weights are in the compute
        type already, those of the policy and those of what it is compared with."""
        return self._autocast() if self.fsdp is None else contextlib.nullcontext()
