"""The model of the benchmarks: what a laptop trains in minutes, with random weights."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from posttrain.tiny import names as tiny


def five_million(folder: Path, vocabulary: int | None = None) -> str:
    """A random Llama of 5 million parameters (hidden 256, 6 layers) with the embedded tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.path_of("tiny-base"))
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary or len(tokenizer), hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=4,
            max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    return str(folder)
