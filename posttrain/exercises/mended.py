"""`--check` of a hunt: a few steps of the mended page against those of the sound one, in float64."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

from posttrain import ROOT
from posttrain.errors import UserError, reason

STEPS, TOLERANCE = {"sft": 3, "dpo": 3, "grpo": 3, "ppo": 18}, 1e-6  # PPO's first rollout gives 16: no KL is paid yet


def compare(page: str, file: Path) -> tuple[list[str], bool]:
    """(what to print, whether the losses and the weights are the same)."""
    import torch

    runs, steps = [], STEPS[page]
    for name, path in (("the sound page", ROOT / f"minimal/{page}.py"), ("yours", file)):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                model, *_, losses = _module(path).train(steps, torch.float64)
        except Exception as error:
            raise UserError(f"{path} does not run: {type(error).__name__}: {reason(error)}") from None
        runs.append((name, model, losses))
    (_, sound, expected), (_, yours, got) = runs
    apart = max((p - q).abs().max().item() for p, q in zip(sound.parameters(), yours.parameters(), strict=True))
    same = apart < TOLERANCE and all(abs(a - b) < TOLERANCE for a, b in zip(expected, got, strict=True))
    lines = [
        f"{name:<15} losses of the first steps: {'  '.join(f'{x:.6f}' for x in losses[:3])}" for name, _, losses in runs
    ]
    if same:
        return [*lines, f"the same losses in {steps} steps, and the same weights after them: the mistake is gone"], True
    if all(abs(a - b) < TOLERANCE for a, b in zip(expected, got, strict=True)):
        return [*lines, f"the same losses, but the weights are up to {apart:.1e} apart: it is still there"], False
    step = next(i for i, (a, b) in enumerate(zip(expected, got, strict=True), 1) if abs(a - b) >= TOLERANCE)
    return [*lines, f"different from step {step} on: it is still there, or another one is"], False


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"page_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT))
    return module
