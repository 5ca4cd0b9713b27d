"""Ways of starting several processes that would do something else than they say, recognised by their environment."""

import os

from posttrain.errors import UserError


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
    if told("ACCELERATE_USE_CPU") and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "accelerate launch was asked for several processes on a CPU, but starts one and says nothing: use "
            "torchrun --standalone --nproc_per_node N -m loops.…"
        )
