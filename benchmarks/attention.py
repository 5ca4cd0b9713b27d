"""Attention in bf16 on a CPU: torch's fused kernel, and plain products (weights made again in the backward pass).

    python -m benchmarks.attention              a minute on two CPU cores
    python -m benchmarks.attention --threads 1

1,536 tokens a batch, grouped heads of 64 or 128 numbers, forward and backward in turn: what
posttrain/models/short_rows.py chooses between, and where its bound (a star) comes from.
"""

import argparse
import statistics
import time

import posttrain  # noqa: F401  (sets OMP_WAIT_POLICY before torch is imported)

import torch  # isort: skip
from transformers import LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention

from posttrain.models import short_rows

TOKENS, ROUNDS = 1536, 6
HEADS = ((9, 3, 64), (14, 2, 64), (8, 8, 128))  # heads, key-value heads, size of one
KEYS = (32, 64, 96, 128, 181, 256, 384, 512)


def milliseconds(function, module, rows: int, queries: int, keys: int) -> tuple[float, float]:
    """(forward, backward), the median of the last rounds."""
    config = module.config
    size, of_key = config.head_dim, config.num_key_value_heads

    def numbers(heads: int, length: int) -> torch.Tensor:
        return torch.randn(rows, heads, length, size, dtype=torch.bfloat16, requires_grad=True)

    query, key, value = numbers(config.num_attention_heads, queries), numbers(of_key, keys), numbers(of_key, keys)
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).expand(rows, 1, -1, -1).contiguous()
    found = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        out, _ = function(module, query, key, value, mask, scaling=size**-0.5)
        between = time.perf_counter()
        out.sum().backward()
        found.append((between - started, time.perf_counter() - between))
    forward, backward = (1e3 * statistics.median(part) for part in zip(*found[2:], strict=True))
    return forward, backward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    torch.manual_seed(0)
    bound, short_rows.SCORES = short_rows.SCORES, 2**62
    print("| heads, rows, queries x keys | fused ms | plain ms | fused / plain |\n|---|---|---|---|")
    for heads, of_key, size in HEADS:
        shape = dict(num_attention_heads=heads, num_key_value_heads=of_key, head_dim=size)
        module = LlamaAttention(LlamaConfig(hidden_size=heads * size, **shape), 0)
        for keys in KEYS:
            for queries in (keys, keys // 3):
                rows = TOKENS // keys
                fused = milliseconds(ALL_ATTENTION_FUNCTIONS["sdpa"], module, rows, queries, keys)
                plain = milliseconds(short_rows.attend, module, rows, queries, keys)
                star = " *" if queries * keys <= bound else ""
                print(
                    f"| {heads} of {size}, {rows}, {queries} x {keys}{star} | {fused[0]:.1f} + {fused[1]:.1f} | {plain[0]:.1f} + "
                    f"{plain[1]:.1f} | {sum(fused) / sum(plain):.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
