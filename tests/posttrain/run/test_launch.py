"""Starting: the compute type, a device that is not there, and ways to start that do something else than they say."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from posttrain import ROOT
from posttrain.config.keys import Model, Training
from posttrain.errors import UserError
from posttrain.run import launch
from posttrain.run.launch import compute_dtype


def of(dtype: str, name: str = "tiny-sft") -> Model:
    return Model(name=name, dtype=dtype)


def test_compute_dtype(monkeypatch):
    assert compute_dtype(of("bfloat16"), on_cpu=True) == torch.bfloat16
    assert compute_dtype(of("float32"), on_cpu=False) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):  # a GPU, with bf16 and without
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert compute_dtype(of("auto"), on_cpu=False) == expected


def test_compute_dtype_on_a_cpu(monkeypatch, tmp_path):
    """bf16 where the hardware has it, *and* is fast in it, *and* the model is large enough for it to pay."""
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    for name, vocabulary in (("small", 1000), ("large", 1_000_000)):  # 1,000,000 * 64 = 64 million, the head is tied
        LlamaConfig(**shape, vocab_size=vocabulary, tie_word_embeddings=True).save_pretrained(tmp_path / name)
    for able, ratio, name, expected in (
        ({"avx512_bf16": True}, 2.5, "large", torch.bfloat16),
        ({"amx_bf16": True}, 1.4, "large", torch.bfloat16),
        ({"avx512_bf16": True}, 0.55, "large", torch.float32),  # as measured on an Intel Xeon without AMX
        ({"avx512_bf16": True}, 1.2, "large", torch.float32),  # not clearly
        ({"avx512_bf16": True}, 2.5, "small", torch.float32),
        ({"avx512_bf16": True}, 2.5, "nowhere", torch.float32),
        ({"avx512_f": True}, 2.5, "large", torch.float32),
    ):
        launch.faster_in_bf16.cache_clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        seconds = {torch.float32: ratio, torch.bfloat16: 1.0}
        monkeypatch.setattr(launch, "seconds_of_a_product", seconds.__getitem__)
        assert compute_dtype(of("auto", str(tmp_path / name)), on_cpu=True) == expected
    launch.faster_in_bf16.cache_clear()


def test_a_product_is_timed():
    assert 0 < launch.seconds_of_a_product(torch.float32) < 1


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"training.device is {device}, but torch finds none here: use auto or cpu"):
        launch.start(Training(device=device), of("auto"))


@pytest.mark.parametrize(
    ("device", "there", "on_cpu"),
    [("cpu", True, True), ("cpu", False, True), ("auto", False, True), ("auto", True, False), ("cuda", True, False)],
)
def test_where_it_runs(monkeypatch, device, there, on_cpu):
    told = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(launch, "Accelerator", lambda **given: told.update(given) or SimpleNamespace(num_processes=1))
    _, compute = launch.start(Training(device=device), of("auto"))
    assert told["cpu"] is on_cpu and compute == (torch.float32 if on_cpu else torch.bfloat16)
    assert told["mixed_precision"] == ("no" if on_cpu else "bf16") and not told["kwargs_handlers"][0].broadcast_buffers


@pytest.mark.parametrize("cache", ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"])
def test_what_is_kept_of_each_shape_is_limited_unless_told_otherwise(cache):
    code = f"import os, posttrain.run.launch; print(os.environ['{cache}'])"
    for told, found in (({}, "16"), ({cache: "1024"}, "1024")):
        clean = {name: value for name, value in os.environ.items() if name != cache}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean | told, capture_output=True, text=True)
        assert done.stdout == f"{found}\n", done.stderr


def test_the_next_run_may_want_another_precision(monkeypatch):
    """Accelerate keeps one state per Python process; a notebook starts one run after the other."""
    for dtype, precision in (("bfloat16", "bf16"), ("auto", "no")):
        accelerator, compute = launch.start(Training(device="cpu"), of(dtype))
        assert accelerator.mixed_precision == precision and compute == compute_dtype(of(dtype), on_cpu=True)


def test_processes_that_do_not_see_each_other_are_refused(monkeypatch):
    """Two trainings that each believe to be alone would overwrite each other's folder."""
    real = launch.Accelerator

    def alone(cpu, mixed_precision, kwargs_handlers):
        monkeypatch.delenv("WORLD_SIZE")
        made = real(cpu=cpu, mixed_precision=mixed_precision)
        monkeypatch.setenv("WORLD_SIZE", "2")
        return made

    monkeypatch.setattr(launch, "Accelerator", alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    launch.AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(UserError, match="WORLD_SIZE is 2, but Accelerate sees 1 process"):
        launch.start(Training(device="cpu"), of("auto"))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "use FSDP2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "on a CPU Accelerate trains with DDP instead"),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, "starts one and says nothing: use torchrun"),
    ],
)
def test_launchers_that_would_do_something_else_are_refused(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        launch.start(Training(device="cpu"), of("auto"))


def told_by_accelerate_launch(monkeypatch, *arguments):
    """The variables that it would start its processes with."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments, _, _ = _validate_launch_command(
        launch_command_parser().parse_args([*arguments, "--num_processes", "2", "a.py"])
    )
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)


def test_fsdp2_as_the_config_has_it_is_taken(monkeypatch):
    told_by_accelerate_launch(monkeypatch, "--config_file", str(ROOT / "configs/accelerate/fsdp2.yaml"))
    assert (os.environ["ACCELERATE_USE_FSDP"], os.environ["FSDP_VERSION"]) == ("true", "2")  # it was really asked for
    assert launch.refuse_launchers(on_cpu=False) is None
    with pytest.raises(UserError, match="FSDP was asked for, but on a CPU"):
        launch.refuse_launchers(on_cpu=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--use_fsdp"], r"FSDP version 1 was asked for \(Accelerate's default\), .* set fsdp_version: 2"),
        (
            ["--use_fsdp", "--fsdp_version", "2"],
            "must have fsdp_cpu_ram_efficient_loading: false .*; fsdp_auto_wrap_policy",
        ),
        (["--fsdp_offload_params", "true"], "must have fsdp_offload_params: false"),
        (["--fsdp_activation_checkpointing", "true"], "must have .*model.gradient_checkpointing does it"),
        (
            ["--fsdp_auto_wrap_policy", "SIZE_BASED_WRAP"],
            r"must have fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP \(layer",
        ),
        (["--dynamo_backend", "inductor"], "must have no dynamo_backend"),
    ],
)
def test_fsdp_otherwise_is_refused(monkeypatch, arguments, message):
    if "--use_fsdp" not in arguments:
        arguments = ["--config_file", str(ROOT / "configs/accelerate/fsdp2.yaml"), *arguments]
    told_by_accelerate_launch(monkeypatch, *arguments)
    with pytest.raises(UserError, match=message):
        launch.refuse_launchers(on_cpu=False)


def test_the_accelerate_configs_are_what_accelerate_reads():
    from accelerate.commands.config.config_args import load_config_from_file

    ddp, fsdp = (load_config_from_file(str(ROOT / f"configs/accelerate/{name}.yaml")) for name in ("ddp", "fsdp2"))
    assert str(ddp.distributed_type).endswith("MULTI_GPU") and str(fsdp.distributed_type).endswith("FSDP")
    assert fsdp.fsdp_config["fsdp_version"] == 2 and ddp.num_processes == fsdp.num_processes == 2
