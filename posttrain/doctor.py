"""What this machine has and can do, tried rather than guessed; what a config will want of it; and whether a model of
yours can be trained here.

python -m posttrain.doctor
python -m posttrain.doctor --config configs/sft_qlora.yaml --training.micro_batch_size 4   # memory, minutes
python -m posttrain.doctor --config configs/sft.yaml --fsdp2 8   # of each of 8 GPUs (configs/accelerate/fsdp2.yaml)
python -m posttrain.doctor --model path/or/hub-id                                          # the model alone, tried

The last one loads the model as the loops do and tries what they will do with it: ten conversations through its chat
template, sampling against training, packing, saving and loading, LoRA. Keys of a config may follow (--model.dtype
bfloat16). The exit code is 1 where a loop cannot train it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
import warnings
from typing import Any

from posttrain import ROOT
from posttrain.config.command_line import parse
from posttrain.config.loading import load
from posttrain.config.methods import module_of
from posttrain.config.stages import SEVERAL
from posttrain.errors import UserError, clear_exit, reason

CORE = ("torch", "transformers", "datasets", "peft", "bitsandbytes", "accelerate", "numpy", "matplotlib", "pydantic")
EXTRAS = {
    "tensorboard": "tracking.to: tensorboard",
    "mlflow": "tracking.to: mlflow",
    "wandb": "tracking.to: wandb",
    "presidio_analyzer": "posttrain.deidentify --backend presidio",
    "flash_attn": "model.attn_implementation: flash_attention_2 (a CUDA GPU)",
}


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return
    with clear_exit():
        path, overrides = parse(arguments)
        if "model" in overrides:
            return of_a_model(path, overrides)
        shares = shares_of(overrides.pop("fsdp2", "1"))
        if path is None and (overrides or shares > 1):
            raise UserError("--KEY VALUE needs --config FILE")
        config = load(path, overrides, origin="command line") if path is not None else None
        if config is not None and config.method in SEVERAL:
            raise UserError(f"{path}: give the config of one of its stages; {module_of(config.method)} runs several")
        for title, lines in (
            ("packages", packages()),
            ("device", device()),
            ("tried here", tried()),
            ("extras", extras()),
        ):
            print(f"{title}\n  " + "\n  ".join(lines))
        if config is not None:
            for_a_config(path, config, shares)


def for_a_config(path: str, config: Any, shares: int) -> None:
    """What a run of it will take here."""
    from posttrain.run import forecast

    here = forecast.Here.of(config)
    print(f"memory for {path}\n  " + "\n  ".join(forecast.memory_lines(config, here, shares)), flush=True)
    if shares == 1:  # what several processes send each other is not counted
        print(f"time for {path}\n  " + "\n  ".join(forecast.time_lines(config, here)))


def shares_of(given: str) -> int:
    """--fsdp2 N: the processes that a model is spread over."""
    if not str(given).isdecimal() or int(given) < 1:
        raise UserError(f"--fsdp2 is the number of processes that FSDP2 spreads the model over, got {given}")
    return int(given)


def of_a_model(path: str | None, overrides: dict) -> None:
    """Every finding as it comes, then the verdict."""
    name = overrides.pop("model")
    if not isinstance(name, str):
        raise UserError("--model takes one model: a hub id, a folder, or an embedded name")
    overrides["model.name"] = name
    config = load(path, overrides, method=None if path else "sft", origin="command line")

    from posttrain.evaluation import own_model

    print(f"model {name}")
    findings = []
    for finding in own_model.examine(config):
        print(
            f"  {finding.name:14}{'NO: ' + finding.problem if finding.problem else 'ok: ' + finding.said}", flush=True
        )
        findings.append(finding)
    fine, verdict = own_model.verdict(findings)
    print(f"verdict: {verdict}")
    if not fine:
        sys.exit(1)


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return None


def packages() -> list[str]:
    """The pinned ones with a word where another version stands here: what the tests have run with is what is pinned."""
    pins = {}
    requirements = ROOT / "requirements.txt"
    if requirements.is_file():
        found = (line.split("#")[0].strip().partition("==") for line in requirements.read_text().splitlines())
        pins = {name: version for name, equals, version in found if equals}
    lines = [f"python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for package in CORE:
        version = version_of(package)
        pin = pins.get(package)
        other = "" if version is None or pin is None or version.split("+")[0] == pin else f"   (tested with {pin})"
        lines.append(f"{package} {version or 'MISSING: pip install -r requirements.txt'}{other}")
    return lines


def device() -> list[str]:
    import torch

    lines = []
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        lines.append(
            f"cuda:{i} {about.name}, {about.total_memory / 2**30:.0f} GiB, compute capability {about.major}.{about.minor}"
        )
    if torch.backends.mps.is_available():
        lines.append("mps is there (untested; training.device: mps)")
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines.append(f"cpu: {os.cpu_count()} cores, {ram:.0f} GiB of memory, {torch.get_num_threads()} torch threads")
    on_cpu = not torch.cuda.is_available()
    lines.append(
        f"training.device: auto is {'cpu' if on_cpu else 'cuda'}, model.dtype: auto computes in {auto(on_cpu)}"
    )
    return lines


def auto(on_cpu: bool) -> str:
    """What model.dtype: auto means here, in words."""
    import torch

    from posttrain.models.size import LARGE
    from posttrain.run.launch import faster_in_bf16

    if on_cpu and faster_in_bf16():
        return f"bfloat16 (models of more than {LARGE / 1e6:.0f} million parameters), else float32"
    bf16 = not on_cpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if bf16 else "float32"


def tried() -> list[str]:
    return [f"{what}: {_try(attempt)}" for what, attempt in (
        ("attention (sdpa)", attention), ("4-bit weights", four_bits), ("8-bit optimiser", eight_bit_adam), ("several processes", processes),
    )]  # fmt: skip


def _try(attempt) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return attempt()
    except Exception as problem:
        return f"does not work ({type(problem).__name__}: {reason(problem)})"


def _device():
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def attention() -> str:
    """Which kernels take a causal forward and backward pass here."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    where = _device()
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    works = []
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        q = torch.randn(1, 2, 64, 64, device=where, dtype=dtype, requires_grad=True)
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
            works.append(name.removesuffix("_ATTENTION").lower())
        except RuntimeError:
            pass
    return f"{', '.join(works)} on {where.type} in {str(dtype).removeprefix('torch.')}"


def four_bits() -> str:
    """A linear layer in nf4: its gradient must be that of its own dequantised weights, before and after eval."""
    import torch

    from posttrain.models import quantize

    quantize.quiet()
    import bitsandbytes as bnb

    torch.manual_seed(0)
    where = _device()
    layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit(torch.randn(64, 64), requires_grad=False, quant_type="nf4")
    layer = layer.to(where)
    quantize.guard(layer)
    plain = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    worst = 0.0
    for _ in range(2):
        x = torch.randn(4, 64, device=where, requires_grad=True)
        layer.train()(x).sum().backward()
        worst = max(worst, (x.grad - torch.ones(4, 64, device=where) @ plain).abs().max().item())
        with torch.no_grad():
            layer.eval()(x)
    return (
        f"work (gradient off by {worst:.1g})"
        if worst < 1e-3
        else f"give WRONG gradients here (off by {worst:.2g}): do not use model.quantization"
    )


def eight_bit_adam() -> str:
    import torch
    from bitsandbytes.optim import AdamW8bit

    weight = torch.nn.Parameter(torch.ones(64, 64, device=_device()))
    optimizer = AdamW8bit([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    return "works" if (weight < 1).all() else "did not move the weights"


def processes() -> str:
    import torch.distributed as dist

    there = [name for name, ok in (("nccl", dist.is_nccl_available()), ("gloo", dist.is_gloo_available())) if ok]
    return f"{', '.join(there)}: torchrun --standalone --nproc_per_node N -m loops.… (README)"


def extras() -> list[str]:
    lines = []
    for package, use in EXTRAS.items():
        there = importlib.util.find_spec(package) is not None
        state = version_of(package) or "there" if there else f"not here: pip install {package.replace('_', '-')}"
        lines.append(f"{package} ({use}): {state}")
    return lines


if __name__ == "__main__":
    main()
