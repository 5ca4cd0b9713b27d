"""LoRA adapters: a fresh one, a saved one that is trained on, and one folded into the weights it was trained on.

An adapter belongs to the very weights under it. One that was trained on a 4-bit base is saved with a note that says so
(base.json), and is merged onto those weights, dequantised: on the original weights it is another model.
"""

from __future__ import annotations

import json
import warnings
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from posttrain import quantize
from posttrain.errors import UserError

NOTE = "base.json"  # beside adapter_config.json: {"quantization": "4bit"}


@contextmanager
def quiet_peft():
    """peft, imported when it is needed (4 s: it pulls in bitsandbytes), without the warnings that are not ours to heed."""
    quantize.quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft

        yield peft


def is_adapter(folder: str | Path) -> bool:
    return (Path(folder) / "adapter_config.json").is_file()


def base_of(folder: str | Path) -> tuple[str, str]:
    """(the base model an adapter folder names, how that base was quantised in training)."""
    name = json.loads((Path(folder) / "adapter_config.json").read_text())["base_model_name_or_path"]
    note = Path(folder) / NOTE
    return name, json.loads(note.read_text())["quantization"] if note.is_file() else "none"


def write_note(folder: Path, quantization: str) -> None:
    if quantization != "none":
        (folder / NOTE).write_text(json.dumps({"quantization": quantization}) + "\n")


def add(model: nn.Module, lora, base_name: str) -> nn.Module:
    """A fresh adapter, in float32: at step 0 it changes nothing (its second factor is 0)."""
    with quiet_peft() as peft:
        model.name_or_path = base_name  # goes into adapter_config.json: where the saved adapter finds its base again
        how = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets,
        )
        try:
            model = peft.get_peft_model(model, how)
        except ValueError as error:
            raise UserError(f"model.lora.targets {lora.targets!r}: {str(error).splitlines()[0]}") from None
    return _trainable_in_float32(model)


def go_on(model: nn.Module, path: str, base_name: str) -> nn.Module:
    """The saved adapter at `path`, trainable, on `model`."""
    with quiet_peft() as peft:
        model.name_or_path = base_name
        try:
            model = peft.PeftModel.from_pretrained(model, path, is_trainable=True)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"model.adapter_path '{path}': cannot be loaded onto {base_name}: {reason}") from None
        model.peft_config["default"].base_model_name_or_path = base_name
    return _trainable_in_float32(model)


def merged(model: nn.Module, path: str) -> nn.Module:
    """`model` (plain weights) with the adapter at `path` folded in."""
    with quiet_peft() as peft:
        model = peft.PeftModel.from_pretrained(model, path).merge_and_unload()
    model.requires_grad_(True)  # peft had frozen the base
    return model


def _trainable_in_float32(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def describe(model: nn.Module, path: str, base_name: str, quantization: str) -> list[str]:
    """What to say about a continued adapter: its own shape holds, and its base should be the one under it."""
    how = model.peft_config["default"]
    lines = [
        f"going on with the adapter {path}: rank {how.r}, alpha {how.lora_alpha:g} (its own; model.lora is not used)"
    ]
    if Path(path).is_dir():
        named, trained_on = base_of(path)
        if trained_on != quantization:
            lines.append(
                f"warning: the adapter was trained on a base with quantization {trained_on}, this one has {quantization}: other weights"
            )
        if Path(named).name != Path(base_name).name:
            lines.append(f"warning: the adapter was trained on {named}, not on {base_name}")
    return lines
