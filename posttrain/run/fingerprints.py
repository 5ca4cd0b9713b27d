"""Is it the same run? Fingerprints of models, rows and functions, and what two configs may differ in."""

from __future__ import annotations

import hashlib
import inspect
import json
from array import array
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from posttrain.config.loading import flat
from posttrain.config.methods import METHODS
from posttrain.errors import UserError
from posttrain.models import sharded

# Keys that may differ when a run is resumed: what is written and shown, not what is computed …
HARMLESS = (
    "resume",
    "output.",
    "tracking.",
    "preflight.",
    "evaluation.",
    "model.dtype",  # the type that it came to is compared by itself: auto may be another one on another machine
    "training.save_every",
    "training.keep_checkpoints",
    "training.best_metric",
    "training.eval_every",
)
# … and what changes only how sums are rounded: the same steps, to the last digits.
ROUNDING = (
    "training.micro_batch_size",
    "training.cpu_threads",
    "training.device",
    "model.gradient_checkpointing",
)


def compare(old: dict, new: dict, where: Path) -> list[str]:
    """Refuse a config that would make another run; the lines to say about what only changes the rounding."""
    methods = [next(name for name in METHODS if name in values) for values in (old, new)]
    if methods[0] != methods[1]:
        raise UserError(
            f"{where} is of a run of loops.{methods[0]}, not of loops.{methods[1]}: give another --output.dir"
        )
    old, new = ({key: _same_place(value) for key, value in flat(values).items()} for values in (old, new))
    changed = {
        key: f"{key} {old[key]} -> {new[key]}"
        for key in old
        if key in new and old[key] != new[key] and not key.startswith(HARMLESS)
    }
    if new.get("training.schedule") == "constant":  # then how long the run is changes none of its steps
        changed = {k: v for k, v in changed.items() if k not in ("training.max_steps", "training.epochs")}
    refused = [line for key, line in changed.items() if key not in ROUNDING]
    if refused:
        raise UserError(
            f"{where} was written with another configuration: {'; '.join(refused)}. Going on would be neither the old run nor a new one: put the keys back, "
            "or start again with --output.overwrite or in another --output.dir"
        )
    return [f"{line}: {same_steps(methods[1])}" for line in changed.values()]


def same_steps(method: str) -> str:
    return "the same steps, rounded otherwise" + (
        "; where there is dropout, with other masks" if method == "sft" else ""
    )


def _same_place(value: Any) -> Any:
    """A path however it is written, and a list of one as its entry."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return str(Path(value).resolve()) if isinstance(value, str) and value and Path(value).exists() else value


CHUNK = 2**22
LEFT_OUT = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "pad_token_id", "_attn_implementation_internal")  # fmt: skip


@torch.no_grad()
def fingerprint(module: nn.Module) -> str:
    """Of every parameter, exactly (its bits as whole numbers, each times its place, added up without rounding), of what
    its quantisation scales it by, and of the model's config."""
    digest, places = hashlib.blake2b(digest_size=8), {}
    for name, parameter in module.named_parameters():
        scales = getattr(parameter, "quant_state", None)
        tensors = [parameter, getattr(scales, "absmax", None), getattr(getattr(scales, "state2", None), "absmax", None), getattr(parameter, "SCB", None)]  # fmt: skip
        for tensor in tensors:
            if tensor is None:
                continue
            whole = sharded.whole(tensor).detach().contiguous().view(-1)
            bits = whole.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[whole.itemsize])
            if bits.device not in places:
                places[bits.device] = torch.arange(1, CHUNK + 1, device=bits.device)
            sums = [int((part.long() * places[bits.device][: len(part)]).sum()) for part in bits.split(CHUNK)]
            digest.update(f"{name} {tuple(tensor.shape)} {sums}\n".encode())
    configs = [m.config for m in module.modules() if hasattr(getattr(m, "config", None), "to_dict")]
    for text in sorted({json.dumps(_canonical(c.to_dict()), sort_keys=True) for c in configs}):
        digest.update(text.encode())
    return digest.hexdigest()


def fingerprint_of_rows(items: list) -> str:
    """Of the token rows of a run, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for item in items:
        fold(digest, item)
    return digest.hexdigest()


def fold(digest, item: Any) -> None:
    """One row into a running digest."""
    for value in (getattr(item, field.name) for field in fields(item)):
        if hasattr(value, "completion_mask"):
            digest.update(array("q", value.input_ids).tobytes() + bytes(value.completion_mask))
        elif isinstance(value, list):
            digest.update(array("q", value).tobytes())
        else:
            digest.update(json.dumps(_canonical(value), sort_keys=True).encode())


def fingerprint_of_functions(functions: list[Callable]) -> str:
    """Of their names and, where it can be read, their source."""
    digest = hashlib.blake2b(digest_size=8)
    for function in functions:
        try:
            source = inspect.getsource(function)
        except (OSError, TypeError):
            source = ""
        digest.update(f"{getattr(function, '__qualname__', type(function).__name__)}\n{source}\n".encode())
    return digest.hexdigest()


def _canonical(value: Any) -> Any:
    """For JSON: the same for the same value in another process. Of any other object, only its type."""
    if isinstance(value, dict):
        return {str(k): _canonical(v) for k, v in value.items() if k not in LEFT_OUT}
    if isinstance(value, (list, tuple)):
        return [_canonical(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (numpy.ndarray, Tensor)):
        return hashlib.blake2b(numpy.ascontiguousarray(numpy.asarray(value)).tobytes(), digest_size=8).hexdigest()
    return value if value is None or isinstance(value, (str, int, float, bool)) else type(value).__name__
