"""Two gloo processes equal one: the same losses, gradients and weights, with odd numbers of rows and of rows per process."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kit import environment, tiny_folder

from posttrain import ROOT

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
    method, model, adapter = arguments
    done = subprocess.run(
        [*start, method, model, str(out), adapter], env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "metrics.json").read_text()), torch.load(out / "weights.pt")


def assert_same(tmp_path, method, adapter):
    model = tiny_folder(tmp_path / "m")
    tiny_folder(tmp_path / "m-teacher", seed=3)
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
    [("sft", "lora"), ("dpo", "none"), ("dpo", "lora"), ("grpo", "none"), ("grpo", "lora"), ("dynamic", "none"), ("taught", "none"), ("taught", "lora"), ("packed", "none"), ("stream", "none"),
     ("dpo", "4bit"), ("reward", "none"), ("reward", "lora"), ("ppo", "none"), ("ppo", "lora"),
     ("dpo-ipo", "none"), ("simpo", "lora"), ("kto", "none"), ("kto", "lora"), ("distill", "none"), ("distill", "lora")],
)  # fmt: skip
def test_all_loops(tmp_path, method, adapter):
    assert_same(tmp_path, method, adapter)


def test_a_world_size_that_disagrees_is_refused(tmp_path):
    out = subprocess.run(
        [sys.executable, "-m", "loops.sft", "--config", "configs/sft_tiny.yaml", "--model.name", tiny_folder(tmp_path / "m"), "--output.dir", str(tmp_path / "run")],
        cwd=ROOT, env=os.environ | {"WORLD_SIZE": "2"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert out.returncode == 1 and "Traceback" not in out.stderr
    assert "WORLD_SIZE=2" in out.stderr


def launch(*arguments, start=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")):
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=240,
        env=environment(),
    )  # fmt: skip


@pytest.mark.long
def test_accelerate_launch_on_a_cpu_is_refused(tmp_path):
    """The real launcher: it starts one process of the two that were asked for."""
    start = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    out = launch("-m", "loops.sft", "--config", "configs/sft_tiny.yaml", "--output.dir", tmp_path / "run", start=start)
    assert out.returncode != 0 and "starts one and says nothing: use torchrun" in out.stderr


@pytest.mark.long
def test_torchrun_as_the_readme_has_it(tmp_path):
    """7 rows, 2 processes: every row once an epoch; and the main process alone speaks."""
    model, data = tiny_folder(tmp_path / "m"), tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}?", "completion": "Yes." * (i + 1)}) + "\n" for i in range(7)))
    more = ["--model.name", model, "--data.name", data, "--training.batch_size", "4", "--training.micro_batch_size", "1",
            "--training.epochs", "2"]  # fmt: skip
    config = ["-m", "loops.sft", "--config", "configs/sft_tiny.yaml", *more, "--output.dir"]
    two = launch(*config, tmp_path / "two")
    one = launch(*config, tmp_path / "one", start=())
    assert one.returncode == two.returncode == 0, two.stderr[-3000:]
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert [row["loss"] for row in rows[1]] == pytest.approx([row["loss"] for row in rows[0]], abs=1e-6, rel=1e-6)
    assert len(rows[0]) == 4  # 7 rows: windows of 4 and 3, twice
    for line in ("read 7 rows", "preflight passed", "sft step 4/4", "wrote "):
        assert two.stderr.count(line) == 1, line


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "error"])
def test_a_process_that_dies_ends_the_run(tmp_path, how):
    """Within a bounded time and with an error: the other one would wait for it in the next all-reduce for ever."""
    script = tmp_path / "dies.py"
    script.write_text(
        f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from posttrain.run.training import Run
log = Run.log
def dying(self, extra):
    row = log(self, extra)
    if self.step == 2 and self.accelerator.process_index == 1:
        {"os.kill(os.getpid(), signal.SIGKILL)" if how == "killed" else "raise RuntimeError('a disk is full')"}
    return row
Run.log = dying
import two_processes
two_processes.main("sft", {tiny_folder(tmp_path / "m")!r}, {str(tmp_path)!r}, "none")
"""
    )
    started = time.perf_counter()
    out = launch(script)
    assert out.returncode != 0 and time.perf_counter() - started < 90
    assert ("SIGKILL" if how == "killed" else "a disk is full") in out.stderr
    assert (
        not (tmp_path / "run" / "model").exists()
        and len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2
    )
