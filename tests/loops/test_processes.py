"""Two gloo processes equal one: the same losses, gradients and weights, with odd numbers of rows and of rows per process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import folder

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(Path(__file__).with_name("two_processes.py"))


def run(out, processes, *arguments):
    out.mkdir()
    start = [sys.executable, SCRIPT]
    if processes > 1:
        start = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
            SCRIPT,
        ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    method, model, adapter = arguments
    done = subprocess.run(
        [*start, method, model, str(out), adapter], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "metrics.json").read_text()), torch.load(out / "weights.pt")


def assert_same(tmp_path, method, adapter):
    model = folder(tmp_path / "m")
    one, two = (run(tmp_path / str(n), n, method, model, adapter) for n in (1, 2))
    assert len(one[0]) == len(two[0]) == 4
    for a, b in zip(one[0], two[0], strict=True):
        for name in set(a) - {"seconds", "tokens_per_second", "memory_gib"}:
            assert b[name] == pytest.approx(a[name], abs=1e-5 if name == "grad_norm" else 2e-6, rel=2e-5), (
                a["step"],
                name,
            )
    for name, weight in one[1].items():
        torch.testing.assert_close(two[1][name], weight, atol=1e-5, rtol=1e-4)


def test_sft(tmp_path):
    assert_same(tmp_path, "sft", "none")


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "adapter"),
    [("sft", "lora"), ("dpo", "none"), ("dpo", "lora"), ("grpo", "none"), ("grpo", "lora"), ("packed", "none"), ("stream", "none"),
     ("dpo", "4bit"), ("reward", "none"), ("reward", "lora"), ("ppo", "none"), ("ppo", "lora")],
)  # fmt: skip
def test_all_loops(tmp_path, method, adapter):
    assert_same(tmp_path, method, adapter)


def test_a_world_size_that_disagrees_is_refused(tmp_path):
    out = subprocess.run(
        [sys.executable, "-m", "loops.sft", "--config", "configs/sft_tiny.yaml", "--model.name", folder(tmp_path / "m"), "--output.dir", str(tmp_path / "run")],
        cwd=ROOT, env=os.environ | {"WORLD_SIZE": "2"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert out.returncode == 1 and "Traceback" not in out.stderr
    assert "WORLD_SIZE=2" in out.stderr


def test_processes_that_do_not_see_each_other_are_refused(tmp_path, monkeypatch):
    """Two trainings that each believe to be alone would overwrite each other's folder."""
    from posttrain import training
    from posttrain.config import load
    from posttrain.errors import UserError

    real = training.Accelerator

    def alone(cpu, mixed_precision, kwargs_handlers):
        monkeypatch.delenv("WORLD_SIZE")
        made = real(cpu=cpu, mixed_precision=mixed_precision)
        monkeypatch.setenv("WORLD_SIZE", "2")
        return made

    monkeypatch.setattr(training, "Accelerator", alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    training.AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(UserError, match="WORLD_SIZE is 2, but Accelerate sees 1 process"):
        training.Run(load(ROOT / "configs/sft_tiny.yaml", {"output.dir": str(tmp_path / "run")}))
