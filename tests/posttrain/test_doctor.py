"""The doctor says what is there and what works; its estimate of memory counts what can be counted exactly."""

import pytest
from kit import SIZES, tiny_folder

from posttrain import ROOT, doctor


def test_what_it_says(capsys):
    doctor.main([])
    out = capsys.readouterr().out
    for line in ("packages\n  python 3", "\n  torch 2.", "cores,", "training.device: auto is", "attention (sdpa): ", "8-bit optimiser: works",
                 "4-bit weights: work (gradient off by ", "tensorboard (tracking.to: tensorboard): "):  # fmt: skip
        assert line in out, line


def test_a_kernel_that_lies_is_found_out(monkeypatch):
    """Tried, not guessed: without the guard, a CPU with AVX512-BF16 repacks the weights in an eval pass (FACTS 2)."""
    from posttrain.models import quantize

    monkeypatch.setattr(quantize, "guard", wrong)
    assert doctor._try(doctor.four_bits).startswith("give WRONG gradients here (off by")

    def gone():
        raise ImportError("no such library\nand more")

    assert doctor._try(gone) == "does not work (ImportError: no such library)"


def wrong(layer):
    """Stands for a kernel with wrong weights: the gradient is that of others than the ones that were stored."""
    layer.register_forward_hook(lambda module, inputs, output: output * 1.5)


def test_for_a_config(tmp_path, capsys):
    tiny_folder(tmp_path / "run/model")
    path = str(tmp_path / "run")  # the folder of a run will do
    doctor.main(["--config", str(ROOT / "configs/dpo_tiny.yaml"), "--model.name", path])
    out = capsys.readouterr().out
    assert "memory for" in out and "rows of up to 256 tokens" in out and "per process" in out
    assert "time for" in out and "measured here: " in out and " pairs" in out and " s  a step, " in out
    assert SIZES["llama"]["hidden_size"] == 32
    doctor.main(["--config", str(ROOT / "configs/dpo_tiny.yaml"), "--model.name", path, "--fsdp2", "4"])
    out = capsys.readouterr().out
    assert "per process of 4, and" in out and "gathered in a step" in out and "time for" not in out
    for arguments in (["--fsdp2", "two"], ["--fsdp2"], ["--fsdp2", "0"]):
        with pytest.raises(SystemExit, match="--fsdp2 is the number of processes that FSDP2 spreads the model over"):
            doctor.main(["--config", str(ROOT / "configs/dpo_tiny.yaml"), "--model.name", path, *arguments])
    with pytest.raises(SystemExit, match=r"model.name 'nowhere/at-all': its config cannot be read"):
        doctor.main(["--config", str(ROOT / "configs/dpo_tiny.yaml"), "--model.name", "nowhere/at-all"])
    with pytest.raises(SystemExit, match="needs --config FILE"):
        doctor.main(["--dpo.beta", "1"])
    with pytest.raises(SystemExit, match="give the config of one of its stages"):
        doctor.main(["--config", str(ROOT / "configs/ladder_tiny.yaml")])


def test_of_a_model(tmp_path, capsys):
    path = tiny_folder(tmp_path / "m")
    doctor.main(["--model", path])
    out = capsys.readouterr().out
    assert out.startswith(f"model {path}\n  loading       ok: LlamaForCausalLM, ") and "NO: " not in out
    assert out.endswith("verdict: sft, distill, dpo, simpo, kto, reward, grpo, ppo can train this model\n")
    doctor.main(["--config", str(ROOT / "configs/dpo_tiny.yaml"), "--model", path, "--model.dtype", "bfloat16"])
    assert "computing in bfloat16" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        doctor.main(["--model", str(tmp_path / "nothing")])
    assert left.value.code == 1 and "no loop can train this model" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--model takes one model"):
        doctor.main(["--model", "a", "b"])
