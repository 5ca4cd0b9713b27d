"""The frozen reference of DPO, GRPO and PPO: the policy **as it was at step 0**, adapters included.

copy         full fine-tuning: a second model. LoRA: a copy of the adapter's starting weights alone, laid in for the
             reference's forward pass (the base under it is frozen and serves both)
adapter_off  a fresh adapter adds 0 at step 0, so the policy without it *is* the start: no copy of anything
NAME         another model, because the config says so

Where the policy is spread over the processes, so is a second model, with the same precision of every part.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from posttrain.errors import UserError
from posttrain.models import loading, sharded
from posttrain.models.logps import CompletionLogps
from posttrain.tokens.batch import Batch


class AdapterOff(nn.Module):
    """The reference as the policy with its fresh adapter switched off: no second copy of the model in memory."""

    def __init__(self, policy: CompletionLogps):
        super().__init__()
        self._policy = [policy]  # in a list: not a submodule, so its parameters are counted and saved once

    def forward(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        policy = self._policy[0]
        with policy.model.disable_adapter():
            return policy(batch, temperature)


class AdapterAtStepZero(nn.Module):
    """The reference as the policy with the adapter weights that it started with (one that was trained before)."""

    def __init__(self, policy: CompletionLogps):
        super().__init__()
        self._policy = [policy]
        self.start = {n: sharded.whole(p).detach().clone() for n, p in policy.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def forward(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        policy = self._policy[0]
        sharded.reshard(policy)  # so that the forward pass gathers what is put in now …
        trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
        now = {n: p.detach().clone() for n, p in trained.items()}
        try:
            for name, parameter in trained.items():
                sharded.put(parameter, self.start[name])
            return policy(batch, temperature)
        finally:
            for name, parameter in trained.items():
                parameter.copy_(now[name])
            sharded.reshard(policy)  # … and the next one what was there


def frozen_reference(policy: CompletionLogps, config, run) -> nn.Module:
    """A module like the policy's, frozen: the policy as it is now, before the first step, unless config.reference names
    another model. Its weights never change; call it under torch.no_grad().

    policy: spread over the processes already, where the run is to be."""
    how, lora = config.reference, config.adapter == "lora"
    if how == "auto":
        how = "adapter_off" if lora and config.adapter_path is None else "copy"
    if how == "adapter_off":
        return AdapterOff(policy)
    if how == "copy" and lora:
        return AdapterAtStepZero(policy)
    spread = sharded.is_sharded(policy)
    if how == "copy":
        # in the policy's own dtype: rounded to bf16 it would not be the policy at step 0 (measured: nats)
        model = sharded.without_weights(policy.model) if spread else copy.deepcopy(policy.model)
    else:  # another model is not asked to equal the policy, so its frozen weights may be stored in the compute type
        model = loading.load(how, dtype=run.compute, device=run.parallel.loads_on, key="model.reference")[0]
        if model.get_input_embeddings().weight.shape[0] != policy.model.get_input_embeddings().weight.shape[0]:
            raise UserError(
                f"model.reference '{how}' has another vocabulary than the policy: their log-probabilities cannot be compared"
            )
    model.requires_grad_(False)
    loading.no_dropout(model)
    model.train(policy.model.training)
    if how != "copy" or not spread:
        reference = run.parallel.spread(CompletionLogps(model))
    else:
        reference = run.parallel.spread(CompletionLogps(model, like=policy))
        sharded.fill(reference, policy)
    if policy.shares_prompts:  # one that cannot reads the rows apart: the same numbers
        with sharded.gathered(reference):
            reference.share_prompts()
    return reference


def gathers(reference: nn.Module, policy: nn.Module) -> nn.Module:
    """Whose weights a forward pass of the reference needs: the policy's (policy: all that is trained), or its own."""
    return policy if isinstance(reference, (AdapterOff, AdapterAtStepZero)) else reference
