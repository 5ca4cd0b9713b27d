"""What a checkpoint must be before anything is trained or asked of it: whole, causal, and of a kind that is known here.

Each of these runs to its end with a healthy curve when it is not looked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from posttrain.errors import UserError
from posttrain.models.lora import without_adapter


def refuse_random_weights(model: nn.Module, info: dict[str, Any], which: str) -> None:
    """info: what from_pretrained(output_loading_info=True, ignore_mismatched_sizes=True) says. A tensor that the file
    lacks, or holds in another shape, is drawn at random."""
    for name, there, wanted in sorted(info["mismatched_keys"]):
        raise UserError(
            f"{which}: {name} is {list(there)} in the checkpoint, {list(wanted)} by config.json: they do not belong together"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{which}: the checkpoint lacks {', '.join(missing[:3])}{more}, which would be random numbers: is it whole, and a "
            f"{type(model).__name__} (config.json: model_type, architectures)?"
        )


def not_used(info: dict[str, Any]) -> list[str]:
    """A line about tensors of the file that this architecture has no place for."""
    unused = sorted(info["unexpected_keys"])
    more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
    return [f"in the checkpoint, but not in the model: {', '.join(unused[:3])}{more}"] if unused else []


@torch.no_grad()
def refuse_seeing_the_future(model: nn.Module, which: str) -> None:
    """One forward pass over two rows that differ in their last token: what was said before it must be the same.

    An encoder sees the very token that it is to predict, and learns nothing that it could use. Only attention can let
    something through, so a leak is never far below what the other token changes at its own place."""
    ids = torch.arange(3, 11, device=model.get_input_embeddings().weight.device).repeat(2, 1)
    ids[1, -1] = 1
    training = model.training
    model.eval()
    logits = model(input_ids=ids, use_cache=False).logits.float()
    model.train(training)
    change = (logits[0] - logits[1]).abs().amax(-1)  # [S]
    if change[:-1].max() > 1e-3 * change[-1]:
        raise UserError(
            f"{which}: {type(model).__name__} sees the tokens after the one it predicts (another last token changes what it "
            "says before): an encoder, not a causal language model (is_decoder in config.json?)"
        )


def about_experts(model: nn.Module, unbalanced: bool) -> list[str]:
    """A mixture of experts keeps its experts busy with a loss of its own, which is not trained here: refused where its
    router learns, unless model.unbalanced_experts says that this is known; else a line."""
    config = without_adapter(model).config.get_text_config()
    weight = getattr(config, "router_aux_loss_coef", None)
    if not weight:
        return []
    learned = [
        n for n, p in model.named_parameters() if p.requires_grad and ("router" in n or n.endswith("gate.weight"))
    ]
    what = f"{type(without_adapter(model)).__name__} balances its experts with a loss (router_aux_loss_coef {weight:g}) that is not trained here"
    if not learned:
        return [f"{what}; its router is frozen"]
    if not unbalanced:
        raise UserError(
            f"{what}, while its router is ({learned[0]} …): tokens may flock to few experts. Train an adapter that leaves it frozen "
            "(model.adapter: lora), or accept that: model.unbalanced_experts: true"
        )
    return [f"{what} (model.unbalanced_experts)"]


def refuse_to_sample(model: nn.Module, cache: Any) -> None:
    """A state-space or hybrid model keeps a running state instead of keys and values: padding on the left goes into it,
    and it cannot be given to a group or lose a row."""
    from transformers.cache_utils import DynamicLayer

    full = without_adapter(model)
    if getattr(full, "_is_stateful", False) or not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        raise UserError(
            f"{type(full).__name__} keeps a state, not only keys and values of its tokens: it cannot be sampled from here. SFT, "
            "DPO and reward models can be trained, with output.samples: 0"
        )
