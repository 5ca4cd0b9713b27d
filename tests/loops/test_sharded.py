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
@pytest.mark.parametrize(
    "method",
    ["pretrain", "sft", "sft-lora", "dpo", "dpo-lora-copy", "simpo", "kto", "kto-lora", "distill", "reward", "grpo", "taught", "ppo", "ppo-shared"],
)  # fmt: skip
def test_sharded_equals_whole_and_resumes(tmp_path, method):
    model = tiny_folder(tmp_path / "m")
    tiny_folder(tmp_path / "m-teacher", seed=3)
    run(1, method, model, tmp_path / "one", "plain")
    run(2, method, model, tmp_path / "two", "sharded")
    assert all(row["grad_norm"] > 0.05 for row in metrics(tmp_path / "one"))  # every step was clipped
    assert_same(tmp_path / "one", tmp_path / "two")

    shutil.copytree(tmp_path / "two", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "model")
    run(2, method, model, tmp_path / "again", "sharded", "resume=true")
    assert_same(tmp_path / "one", tmp_path / "again")
    # a checkpoint of a sharded run is a whole one: one process goes on from it
    shutil.rmtree(tmp_path / "again" / "model")
    assert "2 processes then, 1 now" in run(1, method, model, tmp_path / "again", "plain", "resume=true")
    assert_same(tmp_path / "one", tmp_path / "again")


@pytest.mark.long
def test_in_bf16_the_reference_is_the_policy(tmp_path):
    """Exactly, by Accelerate's own precision: the first step's KL is 0, and its DPO loss ln 2, a float32."""
    model = tiny_folder(tmp_path / "m")
    bf16 = ("model.dtype=bfloat16", "training.max_steps=2", "training.save_every=100")
    run(2, "dpo", model, tmp_path / "dpo", "sharded", *bf16)
    run(2, "grpo", model, tmp_path / "grpo", "sharded", *bf16, "grpo.inner_epochs=1")
    run(2, "ppo", model, tmp_path / "ppo", "sharded", *bf16)
    run(2, "kto", model, tmp_path / "kto", "sharded", *bf16)
    assert (
        metrics(tmp_path / "kto")[0]["loss"] == pytest.approx(0.5, abs=1e-6) and metrics(tmp_path / "kto")[0]["z0"] == 0
    )
    assert metrics(tmp_path / "dpo")[0]["dpo_loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert metrics(tmp_path / "grpo")[0]["kl"] == 0
    assert metrics(tmp_path / "ppo")[0]["kl"] == 0


@pytest.mark.long
def test_a_reward_model_is_sharded_too(tmp_path):
    """One of the two processes has no held-out prompt, and yet takes part in the gathering of the reward model."""
    model = tiny_folder(tmp_path / "m")
    run(1, "reward", model, tmp_path / "rm", "plain")
    asked = (f"ppo.reward_model={tmp_path / 'rm' / 'model'}", "training.save_every=100")
    run(1, "ppo", model, tmp_path / "one", "plain", *asked)
    run(2, "ppo", model, tmp_path / "two", "sharded", *asked)
    assert_same(tmp_path / "one", tmp_path / "two")
