"""LoRA adapters: a fresh one, a saved one that is trained on, and one folded into the weights it was trained on.

An adapter belongs to the very weights under it. One that was trained on a 4-bit base is saved with a note that says so
(base.json), and is merged onto those weights, dequantised: on the original weights it is another model.
"""

from __future__ import annotations

import json
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from posttrain.errors import UserError, reason
from posttrain.models import quantize

NOTE = "base.json"  # beside adapter_config.json: {"quantization": "4bit", "dtype": "bfloat16"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Base:
    """What an adapter was trained on."""

    name: str
    quantization: str = "none"
    # in which the weights were read before they were quantised: other codes otherwise
    dtype: torch.dtype = torch.float32


@contextmanager
def quiet_peft():
    """peft, imported when it is needed (4 s: it pulls in bitsandbytes), without its warnings."""
    quantize.quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft

        yield peft


def local_folder(name: str, revision: str | None = None) -> str:
    """A hub id that holds an adapter, not a model -> the folder it was downloaded to; the folder of a run -> the one of
    its model; anything else as it is."""
    if (path := Path(name).expanduser()).exists():
        return model_in(path)
    from huggingface_hub import snapshot_download
    from transformers.utils import cached_file

    try:
        found = cached_file(name, "adapter_config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    except Exception:  # no such repository, no network: whoever loads it next says so
        return name
    return snapshot_download(name, revision=revision) if found else name


def model_in(folder: Path) -> str:
    """outputs/run (or one of its checkpoints) means the model in it: outputs/run/model."""
    if not holds_a_model(folder) and holds_a_model(folder / "model"):
        return str(folder / "model")
    return str(folder)


def holds_a_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or is_adapter(folder)


def without_adapter(model: nn.Module) -> nn.Module:
    """The transformers model under the adapter; of a model without one, itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_adapter(folder: str | Path) -> bool:
    return (Path(folder) / "adapter_config.json").is_file()


def base_of(folder: str | Path) -> Base:
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    if config.get("peft_type") != "LORA":
        raise UserError(f"{folder}: an adapter of type {config.get('peft_type')}; only LoRA is supported")
    note = Path(folder) / NOTE
    noted = json.loads(note.read_text()) if note.is_file() else {}
    dtype = getattr(torch, noted.get("dtype", "float32"))
    return Base(config["base_model_name_or_path"], noted.get("quantization", "none"), dtype)


def task_of(folder: str | Path) -> str | None:
    """CAUSAL_LM, or SEQ_CLS of a reward model."""
    return json.loads((Path(folder) / "adapter_config.json").read_text()).get("task_type")


def write_note(folder: Path, quantization: str, dtype: torch.dtype) -> None:
    if quantization != "none":
        note = {"quantization": quantization, "dtype": str(dtype).removeprefix("torch.")}
        (folder / NOTE).write_text(json.dumps(note) + "\n")


def has_tokenizer(folder: str | Path) -> bool:
    return any((Path(folder) / name).is_file() for name in TOKENIZER_FILES)


def _refuse_a_tied_head(model: nn.Module, adapted: nn.Module, where: str) -> None:
    """An adapter on the head of a tied model would, merged, change the embeddings as well."""
    head = adapted.get_base_model().get_output_embeddings()  # None: a reward model has none
    tied = model.config.get_text_config().tie_word_embeddings
    if tied and hasattr(head, "lora_A"):
        raise UserError(
            f"{where}: the output head is tied to the embeddings, so an adapter on it cannot be merged: leave it out"
        )


def add(model: nn.Module, lora, base_name: str, task_type: str = "CAUSAL_LM") -> nn.Module:
    """A fresh adapter, in float32: at step 0 it changes nothing (its second factor is 0). SEQ_CLS: the head is trained,
    too."""
    with quiet_peft() as peft:
        model.name_or_path = base_name  # goes into adapter_config.json: where the saved adapter finds its base again
        how = peft.LoraConfig(
            task_type=task_type,
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets,
        )
        try:
            model = peft.get_peft_model(model, how)
        except ValueError as error:
            raise UserError(f"model.lora.targets {lora.targets!r}: {reason(error)}") from None
    _refuse_a_tied_head(model, model, f"model.lora.targets {lora.targets!r}")
    return _trainable_in_float32(model)


def go_on(model: nn.Module, path: str, base_name: str) -> nn.Module:
    """The saved adapter at `path`, trainable, on `model`."""
    with quiet_peft() as peft:
        model.name_or_path = base_name
        try:
            model = peft.PeftModel.from_pretrained(model, path, is_trainable=True)
        except Exception as error:
            raise UserError(
                f"model.adapter_path '{path}': cannot be loaded onto {base_name}: {reason(error)}"
            ) from None
        model.peft_config["default"].base_model_name_or_path = base_name
    return _trainable_in_float32(model)


def merged(model: nn.Module, path: str) -> nn.Module:
    """`model` (plain weights) with the adapter at `path` folded in."""
    with quiet_peft() as peft:
        adapted = peft.PeftModel.from_pretrained(model, path)
        _refuse_a_tied_head(model, adapted, path)
        model = adapted.merge_and_unload()
    model.requires_grad_(True)  # peft had frozen the base
    return model


def _trainable_in_float32(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):  # a layer with an adapter
            module.register_forward_pre_hook(_cast_once)
    return model


def _cast_once(layer: Any, inputs: tuple[Any, ...]) -> None:
    """peft casts what goes into an adapter to the type of its weights, float32; under autocast its products cast it
    back, to the same numbers. Then each adapter of a layer keeps a copy of its own for the backward pass, where all
    could keep the same: a tenth of the memory of a LoRA step of SmolLM2 in bf16 (benchmarks/RESULTS.md)."""
    layer.cast_input_dtype_enabled = not (inputs and torch.is_autocast_enabled(inputs[0].device.type))


def describe(model: nn.Module, path: str, base_name: str, quantization: str) -> list[str]:
    """What to say about a continued adapter: its own shape holds, and its base should be the one under it."""
    how = model.peft_config["default"]
    lines = [
        f"going on with the adapter {path}: rank {how.r}, alpha {how.lora_alpha:g} (its own; model.lora is not used)"
    ]
    if Path(path).is_dir():
        base = base_of(path)
        if base.quantization != quantization:
            lines.append(
                f"warning: the adapter was trained on a base with quantization {base.quantization}, this one has {quantization}: other weights"
            )
        if Path(base.name).name != Path(base_name).name:
            lines.append(f"warning: the adapter was trained on {base.name}, not on {base_name}")
    return lines
