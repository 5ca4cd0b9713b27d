"""A model whose parameters are spread over two processes (FSDP2) trains, clips, samples, saves and resumes as a whole one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kit import environment, tiny_folder
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("sharded.py")


def run(processes, *arguments):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), SCRIPT]
    done = subprocess.run(
        [*start, *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same(a, b):
    for one, two in zip(metrics(a), metrics(b), strict=True):
        for name in set(one) - {"seconds", "tokens_per_second", "memory_gib"}:
            assert two[name] == pytest.approx(one[name], abs=1e-5, rel=2e-5), (one["step"], name)
    for file in (a / "model").glob("*.safetensors"):
        whole, gathered = load_file(file), load_file(b / "model" / file.name)
        assert whole.keys() == gathered.keys()
        for name, weight in whole.items():
            torch.testing.assert_close(gathered[name], weight, atol=1e-5, rtol=1e-4)
    assert (a / "samples.md").read_text() == (b / "samples.md").read_text()


@pytest.mark.long
@pytest.mark.parametrize("method", ["sft", "sft-lora", "dpo-copy", "grpo"])
def test_sharded_equals_whole_and_resumes(tmp_path, method):
    model = tiny_folder(tmp_path / "m")
    run(1, method, model, tmp_path / "one", "plain")
    run(2, method, model, tmp_path / "two", "sharded")
    assert all(row["grad_norm"] > 0.05 for row in metrics(tmp_path / "one"))  # every step was clipped
    assert_same(tmp_path / "one", tmp_path / "two")

    shutil.copytree(tmp_path / "two", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "model")
    run(2, method, model, tmp_path / "again", "sharded", "resume")
    assert_same(tmp_path / "one", tmp_path / "again")
    # a checkpoint of a sharded run is a whole one: one process goes on from it
    shutil.rmtree(tmp_path / "again" / "model")
    assert "2 processes then, 1 now" in run(1, method, model, tmp_path / "again", "plain", "resume")
    assert_same(tmp_path / "one", tmp_path / "again")
