"""A disk that is full costs one sentence, and no trained weight that memory still holds."""

import errno
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from kit import environment, run_loop
from safetensors.torch import load_file
from transformers import PreTrainedModel

from loops import sft
from posttrain.errors import UserError
from posttrain.run import ending, training

ROWS = [{"prompt": f"Is {i} even?", "completion": "Yes." if i % 2 == 0 else "No."} for i in range(8)]


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_for(monkeypatch, refused):
    """A model cannot be written into the folders that are `refused`; elsewhere it can."""
    real = PreTrainedModel.save_pretrained

    def save(model, part, *arguments, **options):
        real(model, part, *arguments, **options)  # all but the last byte
        if refused(Path(part)):
            full()

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)


def run(llama, tmp_path, **changes):
    return run_loop(sft, llama, tmp_path, rows=ROWS, **changes)


def test_the_trained_model_is_written_elsewhere(tmp_path, llama, monkeypatch):
    trained = load_file(run(llama, tmp_path / "straight").folder / "model/model.safetensors")
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    full_for(monkeypatch, lambda part: part.name == "model.part")
    with pytest.raises(UserError) as stopped:
        run(llama, tmp_path, training__save_every=1)
    said = str(stopped.value)
    assert "run/model: the trained model cannot be written (No space left on device). It is in " in said
    place = Path(said.partition(" It is in ")[2].partition(" instead, whole")[0])
    assert place.is_relative_to(tmp_path / "temp") and (place / "tokenizer.json").exists()
    got = load_file(place / "model.safetensors")
    assert all(torch.equal(got[name], trained[name]) for name in trained)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.yaml", "metrics.jsonl", "checkpoints", "written.json"}
    monkeypatch.undo()
    run(llama, tmp_path, training__save_every=1, output__overwrite=False, resume=True)
    assert (tmp_path / "run/model").exists()


@pytest.mark.parametrize(
    ("changes", "rest"),
    [({"training__save_every": 1}, r"make room, and go on from .*step_2 with --resume"), ({}, "there is no checkpoint: it is lost")],
)  # fmt: skip
def test_where_the_temp_folder_is_full_too(tmp_path, llama, monkeypatch, changes, rest):
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    full_for(monkeypatch, lambda part: not part.parent.name.startswith("step_"))
    with pytest.raises(UserError, match=rf"\(No space left on device\), nor in the temp folder .*: {rest}"):
        run(llama, tmp_path, **changes)
    assert list((tmp_path / "temp").glob("posttrain-*/")) == []


def test_the_model_of_before_is_back_where_a_resumed_run_cannot_write_its_own(tmp_path, llama, monkeypatch):
    run(llama, tmp_path, training__save_every=1)
    full_for(monkeypatch, lambda part: part.name == "model.part")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match="the trained model cannot be written"):
        run(llama, tmp_path, training__save_every=1, output__overwrite=False, resume=True)
    assert (tmp_path / "run/model/model.safetensors").exists() and not (tmp_path / "run/model.old").exists()


def test_no_picture_and_no_text_is_worth_a_model(tmp_path, llama, monkeypatch, capsys):
    def half(path, *_):
        path.write_text("half")
        full()

    monkeypatch.setattr(ending, "plot_curves", half)
    monkeypatch.setattr(ending, "write_samples", lambda *_: 1 / 0)
    run(llama, tmp_path, output__samples=1)
    said = capsys.readouterr().err
    assert "curves.png is left out (No space left on device)" in said
    assert "samples.md is left out (ZeroDivisionError: division by zero)" in said
    assert not (tmp_path / "run/curves.png").exists() and (tmp_path / "run/model/model.safetensors").exists()


def test_a_bug_is_not_taken_for_a_full_disk(tmp_path, llama, monkeypatch):
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(llama, tmp_path)


def test_a_run_folder_that_vanishes(tmp_path, llama, monkeypatch, capsys):
    real = training.Meter.row

    def row(meter, accelerator):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return real(meter, accelerator)

    monkeypatch.setattr(training.Meter, "row", row)
    run(llama, tmp_path)
    assert "metrics.jsonl cannot be written (No such file or directory): the run goes on" in capsys.readouterr().err
    assert (tmp_path / "run/model/model.safetensors").exists()
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2  # 8 rows, 4 a step


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own limit")
def test_a_disk_that_refuses_at_every_size(tmp_path, llama):
    """0: nothing can be written. 3000: the texts, but no tensor file, nor the tokenizer's. 250000: a model, but no
    optimizer.pt, which is twice as long."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("full_disk.py")),
        llama,
        str(tmp_path),
        "0",
        "3000",
        "250000",
    ]
    out = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert out.returncode == 0, out.stderr
    report = json.loads(out.stdout)
    for found in report.values():
        assert "Traceback" not in found["code"] + found["said"], found
        assert not any(".part" in file for file in found["files"]), found
    assert report["0"]["code"].startswith("error: ") and "cannot be written: File too large" in report["0"]["code"]
    said = report["3000"]["said"]
    assert report["3000"]["steps"] == [] and "step_1: cannot be written: File too large. The run goes on" in said
    assert "(File too large), nor in the temp folder" in report["3000"]["code"]
    assert report["250000"]["code"] == "0" and report["250000"]["steps"] == []
    assert "run/model/model.safetensors" in report["250000"]["files"]
    assert "step_2: cannot be written: the disk is full, or cannot be written" in report["250000"]["said"]
