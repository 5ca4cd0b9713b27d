"""Checkpoints: what a run needs to go on as if it had never stopped, written so that a kill at any moment leaves a
whole one.

    <run folder>/checkpoints/step_40/
      run.json       the step, the resolved config, fingerprints of model, reference and rows, the best steps so far
      metrics.jsonl  the lines up to this step
      model/         the model in Hugging Face format: loads with plain transformers (or peft), like the finished one
      weights.pt     trained tensors that model/ does not hold under their own name (an adapter's, a critic's, a head's)
      optimizer.pt   the optimiser and its schedule
      loop.pt        every process's random states, and what the loop was in the middle of (a rollout, log-probs)

The order of the rows is a pure function of (seed, epoch), so no position in a file is kept. A checkpoint is written to
step_40.part, every file is fsynced, and only then it gets its name; an old one loses its name before it is deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from posttrain.errors import UserError, writing
from posttrain.models import sharded
from posttrain.run import written

# ---------------------------------------------------------------- the folder


def all_steps(run_folder: Path) -> list[int]:
    names = (re.fullmatch(r"step_(\d+)", p.name) for p in (run_folder / "checkpoints").glob("step_*"))
    return sorted(int(name[1]) for name in names if name)


def path_of(run_folder: Path, step: int) -> Path:
    return run_folder / "checkpoints" / f"step_{step}"


def latest(run_folder: Path) -> Path | None:
    steps = all_steps(run_folder)
    return path_of(run_folder, steps[-1]) if steps else None


def write(run_folder: Path, step: int, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a folder that becomes checkpoints/step_N at once and whole, or not at all."""
    target = path_of(run_folder, step)
    if target.exists():  # a resumed run computes the same again
        return
    name, part = f"checkpoints/{target.name}", target.with_suffix(".part")
    with writing(target):
        written.remove(run_folder, f"{name}.part")
        written.note(run_folder, f"{name}.part/*")
        part.mkdir(parents=True)
        try:
            fill(part)
            for path in [*part.rglob("*"), part]:
                _sync(path)
            written.rename(run_folder, f"{name}.part", name)
        except Exception:
            with contextlib.suppress(OSError):
                written.remove(run_folder, f"{name}.part")
            raise
        _sync(target.parent)


def prune(run_folder: Path, keep: int, best: set[int]) -> None:
    """Delete all but the newest `keep` and the best ones, and what a killed run has left half-written. One that holds a
    file which no run has written stays."""
    with writing(run_folder / "checkpoints"):
        for step in all_steps(run_folder)[:-keep]:
            name = f"checkpoints/step_{step}"
            if step not in best and written.stranger(run_folder, name) is None:
                written.rename(run_folder, name, f"{name}.part")  # killed halfway through, it is no checkpoint any more
        for part in (run_folder / "checkpoints").glob("*.part"):
            written.remove(run_folder, f"checkpoints/{part.name}")


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> Any:
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text())
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise UserError(
            f"{path} is {'damaged' if path.exists() else 'missing'}: delete {path.parent} to go on from the checkpoint before it"
        ) from None


# ---------------------------------------------------------------- states


def random_states() -> dict[str, Any]:
    name, keys, *rest = numpy.random.get_state()
    states = {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    numpy.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def plain(value: Any) -> Any:
    """Dataclasses -> dicts, all the way down: what is written can be read without running code from the file."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return value


def trained(policy: nn.Module, model: nn.Module, of_model: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The trained tensors, whole, by their names in the policy. Of a sharded one on the first process ({} elsewhere):
    those that are `model`'s from of_model, its gathered state dict; a critic's or a head's are gathered now."""
    parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    if of_model is None:
        return {name: p.detach() for name, p in parameters.items()}
    in_model = {id(p): name for name, p in model.named_parameters()}
    found = sharded.gather_to_first({name: p for name, p in parameters.items() if id(p) not in in_model})
    return found | {n: of_model[in_model[id(p)]] for n, p in parameters.items() if of_model and id(p) in in_model}


def save_weights(policy: nn.Module, model: nn.Module, folder: Path, whole: dict[str, Tensor]) -> None:
    """weights.pt: what is trained (`whole`, by name), and for what model/ holds already, only its name there."""
    from safetensors import safe_open

    saved = {}
    for file in (folder / "model").glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            saved |= {name: (s.get_shape(), s.get_dtype()) for name in opened.keys() for s in [opened.get_slice(name)]}  # noqa: SIM118
    there = {id(p): name for name, p in model.named_parameters() if saved.get(name) == (list(p.shape), "F32")}
    ids = {name: id(p) for name, p in policy.named_parameters() if p.requires_grad}
    torch.save(
        {
            "in_model": {name: there[i] for name, i in ids.items() if i in there},
            "tensors": {name: whole[name] for name, i in ids.items() if i not in there},
        },
        folder / "weights.pt",
    )


@torch.no_grad()
def load_weights(policy: nn.Module, folder: Path) -> None:
    """Into the trained parameters of `policy`, exactly."""
    from safetensors import SafetensorError, safe_open

    state = read(folder / "weights.pt")
    parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    if parameters.keys() != state["in_model"].keys() | state["tensors"].keys():
        raise UserError(f"{folder}: it holds other trained tensors than this run has")

    for name, tensor in state["tensors"].items():
        sharded.put(parameters[name], tensor)
    wanted = {saved: name for name, saved in state["in_model"].items()}
    for file in sorted((folder / "model").glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                for saved in sorted(opened.keys() & wanted.keys()):
                    sharded.put(parameters[wanted.pop(saved)], opened.get_tensor(saved))
        except SafetensorError:
            raise UserError(f"{file} is damaged: delete {folder} to go on from the checkpoint before it") from None
    if wanted:
        raise UserError(
            f"{folder / 'model'}: {next(iter(wanted))} is missing: delete {folder} to go on from the checkpoint before it"
        )
