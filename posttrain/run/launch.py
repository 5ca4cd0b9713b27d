"""Starting: device, compute type, Accelerate; and ways to start that do something else than they say, refused."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from posttrain.errors import UserError
from posttrain.models.size import is_large
from posttrain.run import processes

# oneDNN, and torch's layer over it, keep what they made for each shape they met, 1024 each: in bf16 on a CPU half a
# GiB and more after sixty steps of rows of other lengths. With 16 memory stays as it is. They read this once, when they
# first compute.
for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(cache, "16")


def start(training: Any, model: Any) -> tuple[Accelerator, torch.dtype]:
    """config.training, config.model -> (Accelerate, float32 or bfloat16)."""
    device = training.device
    for kind, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if device == kind and not there:
            raise UserError(f"training.device is {kind}, but torch finds none here: use auto or cpu")
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    compute = compute_dtype(model, on_cpu)
    refuse_launchers(on_cpu)
    # Accelerate keeps one state per Python process: a second run in a notebook may want another precision or device.
    AcceleratorState._reset_state(reset_partial_state="WORLD_SIZE" not in os.environ)
    try:
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="bf16" if compute == torch.bfloat16 else "no",
            # the buffers of these models are constants (rotary frequencies): nothing to send around in every forward
            # pass
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except ValueError as problem:
        raise UserError(f"Accelerate cannot start (WORLD_SIZE={os.environ.get('WORLD_SIZE')}): {problem}") from None
    if int(os.environ.get("WORLD_SIZE", 1)) != accelerator.num_processes:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but Accelerate sees {accelerator.num_processes} process(es): "
            "each would train alone and overwrite the others. Start with torchrun --standalone --nproc_per_node N -m loops.…"
        )
    kinds = set(processes.gather(compute))
    if len(kinds) > 1:
        raise UserError(
            f"model.dtype: auto is {' and '.join(sorted(map(str, kinds)))} on these processes: name one of them"
        )
    return accelerator, compute


def compute_dtype(model: Any, on_cpu: bool) -> torch.dtype:
    """config.model -> float32 or bfloat16. auto: bf16 on a GPU that has it; on a CPU that is faster in it, for large
    models only."""
    if model.dtype != "auto":
        return getattr(torch, model.dtype)
    if on_cpu:
        native = is_large(model) and faster_in_bf16()
    else:
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


@functools.cache
def faster_in_bf16() -> bool:
    """Is this CPU clearly faster in bf16? It needs the instructions (AVX512-BF16, AMX), and these must be fast: an AMD
    EPYC trains two to three times as fast with AVX512-BF16, an Intel Xeon at half the speed (benchmarks/RESULTS.md)."""
    has_it = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    return has_it and seconds_of_a_product(torch.float32) > 1.3 * seconds_of_a_product(torch.bfloat16)


def seconds_of_a_product(dtype: torch.dtype) -> float:
    """The shortest of a few: 384 tokens through a layer of 1,024 × 1,024."""
    tokens, layer = torch.ones(384, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        torch.nn.functional.linear(tokens, layer)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


# What accelerate launch may tell FSDP, and why it is not taken: the loops spread their models themselves
# (posttrain/models/sharded.py).
NOT_WITH_FSDP = {
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "fsdp_cpu_ram_efficient_loading: false (every process reads the model; with true all but one get none)",
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params: false (never tried here)",
    "FSDP_ACTIVATION_CHECKPOINTING": "fsdp_activation_checkpointing: false (model.gradient_checkpointing does it)",
    "FSDP_IGNORED_MODULES": "no fsdp_ignored_modules (what is not spread would not be trained together)",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "no parallelism_config (all processes share one copy of the model)",
}


def refuse_fsdp_settings(told: Callable[[str], bool]) -> None:
    """Version 1, which is Accelerate's default, and settings of version 2 that would be ignored."""
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "FSDP version 1 was asked for (Accelerate's default), but the loops train with version 2 only: set fsdp_version: 2 in the "
            "Accelerate config (configs/accelerate/fsdp2.yaml), or give accelerate launch --fsdp_version 2"
        )
    wanted = [
        what for name, what in NOT_WITH_FSDP.items() if told(name) or (name.endswith("MODULES") and name in os.environ)
    ]
    if os.environ.get("FSDP_AUTO_WRAP_POLICY") != "TRANSFORMER_BASED_WRAP":
        wanted.append("fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP (layer by layer)")
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        wanted.append("no dynamo_backend (models are not compiled)")
    if wanted:
        raise UserError(
            f"FSDP2: the Accelerate config must have {'; '.join(wanted)}. configs/accelerate/fsdp2.yaml does"
        )


def refuse_launchers(on_cpu: bool) -> None:
    """What accelerate launch may have been told that does not work, or does something else without a word."""

    def told(name: str) -> bool:
        return os.environ.get(name, "").lower() in ("true", "1")

    if told("ACCELERATE_USE_DEEPSPEED"):
        raise UserError(
            "DeepSpeed's engine counts backward passes and takes an optimiser step inside one of them, but a step here is a list of "
            "micro-batches that are counted together first: use FSDP2 (accelerate launch --config_file configs/accelerate/fsdp2.yaml -m loops.…)"
        )
    if told("ACCELERATE_USE_FSDP") and on_cpu:
        raise UserError(
            "FSDP was asked for, but on a CPU Accelerate trains with DDP instead and says nothing: on a CPU use "
            "torchrun --standalone --nproc_per_node N -m loops.…"
        )
    if told("ACCELERATE_USE_FSDP"):
        refuse_fsdp_settings(told)
    if told("ACCELERATE_USE_CPU") and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "accelerate launch was asked for several processes on a CPU, but starts one and says nothing: use "
            "torchrun --standalone --nproc_per_node N -m loops.…"
        )
