"""Frozen weights in 8 or 4 bits (bitsandbytes), for LoRA on models that would not fit otherwise: QLoRA (2305.14314).

4bit: nf4 with double quantisation, 0.52 bytes a weight. The output head and the embeddings stay as they are.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from posttrain.errors import UserError, reason


def recipe(quantization: str, compute: torch.dtype) -> Any:
    """The BitsAndBytesConfig of model.quantization, for from_pretrained. Tried on one layer first: UserError where it
    fails."""
    from transformers import BitsAndBytesConfig

    _refuse_a_backend_that_does_not_work(quantization)
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def guard(model: nn.Module) -> nn.Module:
    """Call it right after loading, before any forward pass.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a 4-bit weight in place at the first no-grad forward in eval
    mode, and never back: the next gradients are garbage (relative error 1.1), and so is what is merged. No error, no
    NaN. This switches the repacking off (tests/posttrain/models/test_quantize.py: gradients before an evaluation ==
    gradients after)."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def bits_of(model: nn.Module) -> str:
    """none, 8bit or 4bit: how the weights of a loaded model are stored."""
    if not getattr(model, "is_quantized", False):
        return "none"
    how = model.config.quantization_config
    if not hasattr(how, "load_in_4bit"):
        raise UserError(
            f"the checkpoint is quantised by {type(how).__name__}: only bitsandbytes' 4 and 8 bits are supported"
        )
    return "4bit" if how.load_in_4bit else "8bit"


def dequantize(model: nn.Module) -> nn.Module:
    """The same model with the weights that its 4-bit (or 8-bit) ones stand for, as plain float32 tensors."""
    from transformers.pytorch_utils import Conv1D

    if bits_of(model) == "none":
        return cast(model, torch.float32)
    transposed = [n for n, m in model.named_modules() if getattr(m, "source_cls", None) is Conv1D]  # GPT-2
    model = cast(model.dequantize(), torch.float32)
    # dequantising leaves a Linear, whose weight the architecture would load the wrong way round
    for name in transposed:
        linear = model.get_submodule(name)
        layer = Conv1D(*linear.weight.shape)
        layer.weight = nn.Parameter(linear.weight.T.contiguous())
        layer.bias = nn.Parameter(torch.zeros(len(linear.weight)) if linear.bias is None else linear.bias.detach())
        model.set_submodule(name, layer)
    return model


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The parameters in another dtype. Not .to(dtype): that would round the rotary frequencies, too, which no
    checkpoint holds (in bf16 the phase at position 1,000 is off by up to a radian)."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def quiet() -> None:
    """bitsandbytes tells of every layer that it casts, and of kernels that it could have had: not ours to heed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def _refuse_a_backend_that_does_not_work(quantization: str) -> None:
    """bitsandbytes may be missing, or there without a library for this machine: quantise one small layer and use it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        quiet()
        from bitsandbytes import nn as layers

        if quantization == "4bit":
            layer = layers.Linear4bit(64, 64, bias=False, quant_type="nf4")
        else:
            layer = layers.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
        finite = torch.isfinite(guard(layer).to(device)(torch.ones(1, 64, device=device))).all()
    except Exception as error:
        raise UserError(
            f"model.quantization {quantization}: bitsandbytes does not work here ({reason(error)}); use model.quantization: none, "
            "or pip install bitsandbytes"
        ) from None
    if not finite:
        raise UserError(
            f"model.quantization {quantization}: bitsandbytes computes NaN here; use model.quantization: none"
        )
