"""Saving in Hugging Face format: it loads with plain transformers, or peft, and stops where the loops' own sampler
does."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor, nn

from posttrain.models import lora, quantize
from posttrain.tokens import template


def save(model: nn.Module, tokenizer, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Hugging Face format: loads with plain transformers, or peft where it is an adapter. The generation config is told
    every id that ends a turn, so that generate() stops where the loops' own sampler does.

    state_dict: the whole weights, of a model that is sharded."""
    full = lora.without_adapter(model)
    full.generation_config.eos_token_id = template.stop_ids(tokenizer)
    full.generation_config.pad_token_id = tokenizer.pad_token_id
    try:
        full.generation_config.validate(strict=True)
    except ValueError:
        # Some models ship temperature or top_p beside do_sample=False, which the library refuses to save: their authors
        # meant sampling, and a trained model must not be lost over it.
        full.generation_config.do_sample = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, state_dict=state_dict)
    full.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if lora.is_adapter(folder):
        lora.write_note(folder, quantize.bits_of(full), full.get_input_embeddings().weight.dtype)
