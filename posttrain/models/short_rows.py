"""Attention over short rows in 16 bits on a CPU: plain matrix products instead of torch's fused kernel.

    W = softmax(s Q Kᵀ + mask)    O = W V
    dV = Wᵀ dO    dS = W ⊙ (dO Vᵀ - Σ_d dO ⊙ O)    dQ = s dS K    dK = s dSᵀ Q        (arXiv 2205.14135, appendix B)

The fused kernel is made for long rows. In bf16 on a CPU its backward pass is slow: 16 rows of 96 tokens (9 heads, one
thread of an EPYC) take 7 + 30 ms forward and backward, these products 7 + 11. From 256 tokens on there may be no
difference, and length x length weights are much to hold. So `model.attn_implementation: auto` computes rows of up to
SCORES scores a head like this, and the others with the fused kernel. W is made again in the backward pass: no more is
kept than the fused kernel keeps. Every shape that counts as short is faster, most of them twice: python -m
benchmarks.attention

The choice goes by the width of the rows alone, with gradient or without: a log-prob does not depend on who asks."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

NAME = "sdpa_unless_short"
SCORES = 2**15  # queries x keys: 181 tokens that look at themselves
# Words of a layer that change no score: the mask has them already, or they are about something else. Any other (a soft
# cap, a bias, sinks, a word not known here) goes to the library, which heeds or refuses it.
KNOWN = {"is_causal", "sliding_window", "position_ids", "use_cache", "output_router_logits"}


def are_short(dtype: torch.dtype, device: torch.device, queries: int, keys: int) -> bool:
    """One query is a token that is sampled, with no backward pass."""
    return dtype.itemsize == 2 and device.type == "cpu" and queries > 1 and queries * keys <= SCORES


def attend(
    module: nn.Module,
    query: Tensor,  # [rows, heads, queries, D]
    key: Tensor,  # [rows, key-value heads, keys, D]
    value: Tensor,
    attention_mask: Tensor | None,  # bool [rows, 1, queries, keys]; None: causal, or one query that sees all
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,  # none is dropped: see KNOWN
) -> tuple[Tensor, None]:
    """out [rows, queries, heads, D]: transformers' attention interface."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    queries, keys, device = query.shape[2], key.shape[2], query.device
    # Under autocast queries and keys come in 32 bits from the rotary embedding; the fused kernel casts them, too.
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else query.dtype
    mask = attention_mask
    if mask is None and queries == keys and _is_causal(module, more):
        mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril()[None, None]
    simple = all(word in KNOWN or value is None or value is False for word, value in more.items()) and not dropout
    if not simple or mask is None or mask.dtype != torch.bool or not are_short(dtype, device, queries, keys):
        how = {"scaling": scaling, "dropout": dropout, **more}
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **how)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return Plain.apply(query.to(dtype), key.to(dtype), value.to(dtype), mask, scale), None


def _is_causal(module: nn.Module, more: dict[str, Any]) -> bool:
    asked = more.get("is_causal")
    return getattr(module, "is_causal", True) if asked is None else asked


class Plain(torch.autograd.Function):
    """out [rows, queries, heads, D]"""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,  # [rows, heads, queries, D]
        key: Tensor,  # [rows, key-value heads, keys, D]
        value: Tensor,
        mask: Tensor,  # bool [rows or 1, 1, queries, keys]: what a query may look at
        scale: float,
    ) -> Tensor:
        out = (_by_key_head(_weights(query, key, mask, scale), key) @ value).view(query.shape)
        out = out.transpose(1, 2).contiguous()
        ctx.save_for_backward(query, key, value, mask, out)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, out = ctx.saved_tensors
        weights = _weights(query, key, mask, ctx.scale)  # [rows, heads, queries, keys]
        d_heads = _by_key_head(d_out.transpose(1, 2), key)
        d_value = _by_key_head(weights, key).mT @ d_heads
        d_weights = (d_heads @ value.mT).view(weights.shape)
        of_row = (
            (d_out.float() * out).sum(-1, keepdim=True).transpose(1, 2).to(weights.dtype)
        )  # [rows, heads, queries, 1]
        d_scores = _by_key_head((d_weights - of_row) * weights, key)
        d_query = ctx.scale * (d_scores @ key).view(query.shape)
        d_key = ctx.scale * (d_scores.mT @ _by_key_head(query, key))
        return d_query, d_key, d_value, None, None


def _weights(query: Tensor, key: Tensor, mask: Tensor, scale: float) -> Tensor:
    """[rows, heads, queries, keys]. Scores in 32 bits: 16 leave those of a sure head two digits."""
    scores = (_by_key_head(query, key).float() @ key.float().mT).view(*query.shape[:3], -1)
    unseen = torch.zeros((), dtype=scores.dtype).where(mask, torch.finfo(scores.dtype).min)
    return torch.add(unseen, scores, alpha=scale).softmax(-1).to(query.dtype)


def _by_key_head(x: Tensor, key: Tensor) -> Tensor:
    """[rows, heads, queries, n] -> [rows, key-value heads, queries of all heads that look at the same keys, n]"""
    return x.reshape(*key.shape[:2], -1, x.shape[-1])


def use(model: nn.Module) -> None:
    """From now on, where the library picked the fused kernel and the architecture takes attention of one's own."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    takes_ours = hasattr(sys.modules[type(model).__module__], "eager_attention_forward")
    if model.config.get_text_config()._attn_implementation == "sdpa" and takes_ours:
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
