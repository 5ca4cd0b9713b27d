"""What this machine does in a second, measured in the shapes of a model: for an estimate of time (duration.py)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.nn.functional import scaled_dot_product_attention as sdpa

from posttrain.models import short_rows
from posttrain.models.memory import Shape

BEYOND_CACHES = 2**28  # bytes of weights that no cache holds: each product reads its own from memory
ROUNDS = 5  # over all that is measured, in turn, so that a slow moment of the machine does not hit one rate alone
MOST_TOKENS = 1024  # beyond that a product's rate hardly changes


@dataclass(frozen=True)
class Rates:
    products: float  # FLOP/s of products over many tokens
    narrow: float  # FLOP/s of products with the two factors of an adapter; 0: there is none
    few: float  # FLOP/s of products over a few rows, with weights that come from memory; 0: not asked for
    attention: float  # FLOP/s of causal attention, forward, counted as the full square
    moved: float  # bytes/s of an addition of activations; in 16 bits, of what is done more often, a cast to 32 and back
    softmax: float  # bytes/s of a softmax over the vocabulary, in 32 bits
    start: float  # seconds that an addition takes however small it is


def measure(
    shape: Shape,
    compute: torch.dtype,
    device: torch.device | str,
    tokens: int,  # of a typical micro-batch
    length: int,  # of a typical row
    rows: int = 0,  # answers that are sampled at once
    spend: float = 2.0,  # seconds, about
) -> Rates:
    device, tokens = torch.device(device), max(1, min(tokens, MOST_TOKENS))
    weights = _weights(shape, compute, device)
    flops = 2 * sum(w.numel() for w in weights)
    factors = [
        torch.ones(size, dtype=compute, device=device)
        for size in ((shape.rank, shape.hidden), (shape.hidden, shape.rank))
    ]
    many, few = (_products(weights, n, device) for n in (tokens, rows))
    large = torch.ones(tokens, shape.intermediate, dtype=compute, device=device)
    small = torch.ones(rows or 1, shape.hidden, dtype=compute, device=device)
    chunk = min(tokens, max(64, 2**24 // shape.vocabulary))  # as the head takes them (models/logps.py)
    logits = torch.ones(chunk, shape.vocabulary, device=device)
    heads = torch.ones(max(1, tokens // length), shape.heads, length, shape.queries // shape.heads, device=device)
    heads = heads.to(compute)

    def additions() -> None:
        for _ in range(100):
            small + small

    asked = {
        "products": (many, tokens * flops),
        "narrow": (_products(factors, tokens, device), 2 * tokens * sum(w.numel() for w in factors)),
        "attention": (lambda: _attention(heads), 4 * heads.numel() * length),
        "moved": (lambda: large + large, 12 * large.numel())
        if compute == torch.float32
        else (lambda: large.float().to(compute), 12 * large.numel()),
        "softmax": (lambda: torch.log_softmax(logits, dim=-1), 8 * logits.numel()),
        "start": (additions, 100),
        "few": (few, rows * flops),
    }
    asked = {name: work for name, work in asked.items() if work[1]}
    spent = _medians([work for work, _ in asked.values()], device, spend / ROUNDS / len(asked))
    found = {name: amount / took for (name, (_, amount)), took in zip(asked.items(), spent, strict=True)}
    return Rates(**{"few": 0.0, "narrow": 0.0, **found, "start": 1 / found["start"]})


def _attention(heads: Tensor) -> Tensor:
    """Of [rows, heads, length, D], as a model in this type would (short_rows.py)."""
    length = heads.shape[2]
    if not short_rows.are_short(heads.dtype, heads.device, length, length):
        return sdpa(heads, heads, heads, is_causal=True)
    return (heads @ heads.mT).softmax(-1, torch.float32).to(heads.dtype) @ heads


def _weights(shape: Shape, compute: torch.dtype, device: torch.device) -> list[Tensor]:
    """A block's products, again and again until no cache holds them: into and out of the MLP, and one of attention."""
    sizes = [(shape.intermediate, shape.hidden), (shape.hidden, shape.intermediate), (shape.hidden, shape.hidden)]
    of_block = sum(a * b for a, b in sizes) * compute.itemsize
    blocks = max(1, min(shape.layers, BEYOND_CACHES // of_block))
    return [torch.full(size, 1e-2, dtype=compute, device=device) for _ in range(blocks) for size in sizes]


def _products(weights: list[Tensor], rows: int, device: torch.device) -> Callable[[], None]:
    """What takes so many rows through all weights."""
    widths = {weight.shape[1] for weight in weights}
    inputs = {width: torch.ones(rows, width, dtype=weights[0].dtype, device=device) for width in widths}

    def work() -> None:
        for weight in weights:
            linear(inputs[weight.shape[1]], weight)

    return work


def _medians(asked: list[Callable[[], object]], device: torch.device, long_enough: float) -> list[float]:
    """Seconds that each of these takes: the median over the rounds, in each as often as fits. The first time is left
    out."""
    with torch.no_grad():
        for work in asked:
            work()
        found = [[_once(work, device, long_enough) for work in asked] for _ in range(ROUNDS)]
    return [statistics.median(of_one) for of_one in zip(*found, strict=True)]


def _once(work: Callable[[], object], device: torch.device, long_enough: float) -> float:
    _finished(device)
    count, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < long_enough or not count:
        work()
        _finished(device)
        count += 1
    return spent / count


def _finished(device: torch.device) -> None:
    """A GPU is told what to do, and goes on by itself."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
