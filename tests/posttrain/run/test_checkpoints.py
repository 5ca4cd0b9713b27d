"""What a resumed run refuses, what a checkpoint keeps, and what it costs."""

import errno
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from kit import run_loop, small_config, tiny_folder
from safetensors.torch import load_file

from loops import dpo, grpo, sft
from posttrain.config import load
from posttrain.errors import UserError
from posttrain.run import checkpoint_files, checkpoints

ROWS = [{"prompt": f"Is {i} even?", "completion": "Yes." if i % 2 == 0 else "No."} for i in range(10)]
PAIRS = [{"prompt": f"Q{i}?", "chosen": f"Yes {i}.", "rejected": "No."} for i in range(8)]


SAVING = {
    "training__max_steps": 6,
    "training__save_every": 2,
    "training__learning_rate": 1e-2,
    "output__overwrite": False,
}
LOOPS = {"sft": (sft, ROWS), "dpo": (dpo, PAIRS), "grpo": (grpo, None)}


@pytest.fixture
def own(tmp_path):
    """A model folder for a test that changes it."""
    return tiny_folder(tmp_path / "llama")


def config(model, tmp_path, method="sft", **changes):
    return small_config(method, model, tmp_path, **SAVING | changes)


def run(model, tmp_path, method="sft", **changes):
    """Six steps of a loop, with a checkpoint after every second."""
    loop, rows = LOOPS[method]
    return run_loop(loop, model, tmp_path, **{"rows": rows} | SAVING | changes)


def steps(tmp_path):
    return checkpoint_files.all_steps(tmp_path / "run")


def test_the_newest_stay_and_load_with_the_plain_library(tmp_path, llama):
    result = run(llama, tmp_path)
    assert steps(tmp_path) == [4, 6]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    last = tmp_path / "run/checkpoints/step_6/model"
    loaded, ids = AutoModelForCausalLM.from_pretrained(last), torch.arange(5)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, result.model.eval()(ids).logits)
    assert AutoTokenizer.from_pretrained(last).eos_token == "<|im_end|>"
    run(llama, tmp_path, training__keep_checkpoints=1, output__overwrite=True)
    assert steps(tmp_path) == [6]


def test_a_kill_before_the_oldest_is_gone_leaves_none_too_many(tmp_path, llama, monkeypatch):
    """Killed after the last checkpoint was written and before the oldest was deleted: there is nothing left to do."""
    with monkeypatch.context() as without:
        without.setattr(checkpoint_files, "prune", lambda *_: None)
        sft.train(config(llama, tmp_path), rows=ROWS)
    folder = tmp_path / "run"
    assert checkpoint_files.all_steps(folder) == [2, 4, 6]
    shutil.rmtree(folder / "model")  # which says that a run has finished
    sft.train(config(llama, tmp_path, resume=True), rows=ROWS)
    assert checkpoint_files.all_steps(folder) == [4, 6] and (folder / "model").exists()


def test_full_weights_are_written_once_and_an_adapter_without_its_base(tmp_path, llama):
    run(llama, tmp_path)
    at = tmp_path / "run/checkpoints/step_6"
    assert checkpoint_files.read(at / "weights.pt")["tensors"] == {}  # all of them are in model/
    run(llama, tmp_path, model__adapter="lora", output__overwrite=True)
    held = checkpoint_files.read(at / "weights.pt")["tensors"]
    assert held and all("lora_" in name for name in held)
    assert all("lora_" in name for name in load_file(at / "model/adapter_model.safetensors"))


def test_the_best_is_kept(tmp_path, llama, monkeypatch, capsys):
    """validation_loss 3, 1, 2 at steps 2, 4, 6: step 4 is the best, and stays though only the newest is asked for."""
    measured = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(sft, "evaluate", lambda *_: next(measured))
    held_out = {"data.validation_split": 0.2, "training.eval_every": 2, "training.best_metric": "validation_loss"}
    run(llama, tmp_path, training__keep_checkpoints=1, **held_out)
    assert steps(tmp_path) == [4, 6]
    assert json.loads((tmp_path / "run/checkpoints/step_6/run.json").read_text())["bests"] == {
        "validation_loss": {"step": 4, "value": 1.0}
    }
    assert re.search(r"best validation_loss 1 at step 4: .*checkpoints/step_4/model", capsys.readouterr().err)
    measured = iter([0.1, 0.4, 0.3])  # more is better for everything that is no loss
    monkeypatch.setattr(dpo, "evaluate", lambda *_: {"validation_accuracy": next(measured), "validation_loss": 0.0})
    held_out |= {"training.best_metric": "validation_accuracy", "training.save_every": None, "output.overwrite": True}
    run(llama, tmp_path, "dpo", **held_out)
    assert steps(tmp_path) == [2, 4]  # written when better, and only then


def test_nothing_begun_or_finished_is_overwritten_unasked(tmp_path, llama, capsys):
    with pytest.raises(ValueError, match="stop here"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "due", stops_after(3))
        run(llama, tmp_path)
    with pytest.raises(UserError, match=r"holds a run that has come to step 2: give --resume to go on with it"):
        run(llama, tmp_path)
    with pytest.raises(UserError, match="give one of the two"):
        run(llama, tmp_path, resume=True, output__overwrite=True)
    result = run(llama, tmp_path, resume=True)
    assert [row["step"] for row in result.metrics] == [1, 2, 3, 4, 5, 6]
    assert "step_2: 2 of 6 steps are done" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds a finished run"):
        run(llama, tmp_path)
    before = (tmp_path / "run/model/model.safetensors").read_bytes()
    run(llama, tmp_path, resume=True)  # nothing left to do: the same model again
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == before


def stops_after(step):
    real = checkpoints.Checkpoints.due

    def due(self):
        if self.run.step == step:
            raise ValueError("stop here")
        return real(self)

    return due


def test_resume_without_a_checkpoint_says_so_and_starts(tmp_path, llama, capsys):
    result = run(llama, tmp_path, resume=True)
    assert len(result.metrics) == 6 and "no checkpoint in" in capsys.readouterr().err
    without = {"training.save_every": None, "output.dir": str(tmp_path / "other")}
    run(llama, tmp_path, **without)
    with pytest.raises(UserError, match="a finished run and no checkpoint to go on from"):
        run(llama, tmp_path, resume=True, **without)


def interrupted(model, tmp_path, method="sft", **changes):
    """Stopped after step 5: the last checkpoint is that of step 4."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="stop here"):
        patch.setattr(checkpoints.Checkpoints, "due", stops_after(5))
        run(model, tmp_path, method, **changes)
    assert steps(tmp_path)[-1] == 4


def test_another_config_is_refused_with_its_keys(tmp_path, llama, capsys):
    interrupted(llama, tmp_path)
    with pytest.raises(UserError) as refused:
        run(llama, tmp_path, resume=True, training__learning_rate=0.02, training__seed=1, sft__length_weighting="sequence")  # fmt: skip
    for part in ("training.learning_rate 0.01 -> 0.02", "training.seed 0 -> 1", "sft.length_weighting token -> sequence", "put the keys back"):  # fmt: skip
        assert part in str(refused.value)
    with pytest.raises(UserError, match=r"training.max_steps 6 -> 8"):  # another schedule
        run(llama, tmp_path, resume=True, training__max_steps=8)
    harmless = {"output.samples": 1, "training.keep_checkpoints": 9, "preflight.rows": False, "training.save_every": 3}
    run(llama, tmp_path, resume=True, training__micro_batch_size=2, **harmless)
    assert "training.micro_batch_size 16 -> 2: the same steps, rounded otherwise" in capsys.readouterr().err


def test_another_compute_type_is_refused(tmp_path, llama):
    """Not by what the key says: auto may come to another type on another machine."""
    interrupted(llama, tmp_path)
    with pytest.raises(UserError, match=r"was computed in float32, not in bfloat16: give --model.dtype float32"):
        run(llama, tmp_path, resume=True, model__dtype="bfloat16")
    run(llama, tmp_path, resume=True, model__dtype="float32")  # what auto had come to


def test_a_checkpoint_of_an_older_version_says_no_type(tmp_path, llama):
    """Then the key speaks, where it says one; auto goes on as it did."""
    interrupted(llama, tmp_path)
    file = tmp_path / "run/checkpoints/step_4/run.json"
    info = json.loads(file.read_text())
    del info["compute"]
    for dtype in ("bfloat16", "auto"):
        info["config"]["model"]["dtype"] = dtype
        file.write_text(json.dumps(info))
        if dtype == "bfloat16":
            with pytest.raises(UserError, match=r"was computed in bfloat16, not in float32"):
                run(llama, tmp_path, resume=True)
        else:
            assert len(run(llama, tmp_path, resume=True).metrics) == 6


def test_a_run_with_a_constant_rate_may_be_made_longer(tmp_path, llama):
    constant = {"training.schedule": "constant"}
    run(llama, tmp_path, **constant)
    longer = run(llama, tmp_path, resume=True, training__max_steps=9, **constant)
    whole = run(llama, tmp_path, training__max_steps=9, output__dir=str(tmp_path / "whole"), **constant)
    assert [row["loss"] for row in longer.metrics] == [row["loss"] for row in whole.metrics]


def test_other_rows_another_model_and_another_reference_are_refused(tmp_path, own):
    interrupted(own, tmp_path, "dpo", model__reference=tiny_folder(tmp_path / "ref", seed=3))
    again = {"resume": True, "model.reference": str(tmp_path / "ref")}
    with pytest.raises(UserError, match="the training data: not what it was when"):
        run(own, tmp_path, "dpo", rows=[*PAIRS[:7], PAIRS[7] | {"rejected": "Nope."}], **again)
    tiny_folder(tmp_path / "ref", seed=4)
    with pytest.raises(
        UserError,
        match=r"the reference: not what it was when .*step_4 was written \(fingerprint \w{16} then, \w{16} now\)",
    ):
        run(own, tmp_path, "dpo", **again)
    tiny_folder(tmp_path / "ref", seed=3)
    tiny_folder(tmp_path / "llama", seed=5)
    with pytest.raises(UserError, match="the model: not what it was"):
        run(own, tmp_path, "dpo", **again)
    tiny_folder(tmp_path / "llama")
    assert len(run(own, tmp_path, "dpo", **again).metrics) == 6


def test_precomputed_log_probs_are_not_computed_again(tmp_path, llama, monkeypatch):
    interrupted(llama, tmp_path, "dpo", dpo__precompute=True)
    monkeypatch.setattr(dpo, "precompute", None)  # a call would fail
    result = run(llama, tmp_path, "dpo", dpo__precompute=True, resume=True)
    assert len(result.metrics) == 6


def test_a_damaged_checkpoint_is_named(tmp_path, llama):
    interrupted(llama, tmp_path)
    (tmp_path / "run/checkpoints/step_4/optimizer.pt").write_bytes(b"half")
    with pytest.raises(
        UserError, match=r"step_4/optimizer.pt is damaged: delete .* to go on from the checkpoint before it"
    ):
        run(llama, tmp_path, resume=True)


def test_a_stream_that_has_changed_is_refused(tmp_path, llama):
    """It cannot be hashed beforehand: what was read of it is read again, and must be the same."""
    data = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in ROWS]
    data.write_text("\n".join(lines))
    stream = {"data.name": str(data), "data.streaming": True}
    interrupted(llama, tmp_path, rows=None, **stream)
    data.write_text("\n".join(reversed(lines)))
    with pytest.raises(UserError, match="the stream: not what it was when"):
        run(llama, tmp_path, rows=None, resume=True, **stream)
    data.write_text("\n".join(lines))
    assert len(run(llama, tmp_path, rows=None, resume=True, **stream).metrics) == 6


def test_a_model_config_that_has_changed_is_refused(tmp_path, own):
    interrupted(own, tmp_path)
    file = Path(own) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 0.5}))
    with pytest.raises(UserError, match="the model: not what it was"):
        run(own, tmp_path, resume=True)


def test_another_reward_function_is_refused(tmp_path, llama):
    def short(completion_ids):
        return [-len(ids) for ids in completion_ids]

    def long(completion_ids):
        return [len(ids) for ids in completion_ids]

    rl = {"grpo.group_size": 2, "grpo.max_new_tokens": 4}
    rows = [
        {"prompt": f"Q{i}?", "odd": {1: {2, 3}, "x": object()}} for i in range(4)
    ]  # no row is too odd to be compared
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="stop here"):
        patch.setattr(checkpoints.Checkpoints, "due", stops_after(5))
        run(llama, tmp_path, "grpo", rows=rows, reward=short, **rl)
    with pytest.raises(UserError, match="the reward: not what it was"):
        run(llama, tmp_path, "grpo", rows=rows, reward=long, resume=True, **rl)
    assert len(run(llama, tmp_path, "grpo", rows=rows, reward=short, resume=True, **rl).metrics) == 6


def test_lost_metrics_come_from_the_checkpoint(tmp_path, llama):
    interrupted(llama, tmp_path)
    (tmp_path / "run/metrics.jsonl").write_text("")
    run(llama, tmp_path, resume=True)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_the_best_stays_when_nobody_asks_for_it_any_more_and_nan_is_never_best(tmp_path, llama, monkeypatch):
    measured = iter([math.nan, 1.0, 2.0])
    monkeypatch.setattr(sft, "evaluate", lambda *_: next(measured))
    held_out = {
        "data.validation_split": 0.2,
        "training.eval_every": 1,
        "training.keep_checkpoints": 1,
        "training.save_every": 1,
    }
    best = {"training.best_metric": "validation_loss"}
    with pytest.raises(ValueError, match="stop here"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "due", stops_after(3))
        run(llama, tmp_path, **held_out, **best)
    assert steps(tmp_path) == [2]
    monkeypatch.setattr(sft, "evaluate", lambda *_: 5.0)
    run(llama, tmp_path, resume=True, **held_out)
    assert steps(tmp_path) == [2, 6]


def test_fewer_steps_than_are_done(tmp_path, llama):
    constant = {"training.schedule": "constant"}
    interrupted(llama, tmp_path, **constant)
    with pytest.raises(UserError, match=r"4 steps are done, more than training.max_steps = 3"):
        run(llama, tmp_path, resume=True, training__max_steps=3, **constant)


@pytest.mark.parametrize("file", ["run.json", "loop.pt", "weights.pt", "model/model.safetensors"])
def test_any_damaged_file_is_named(tmp_path, llama, file):
    interrupted(llama, tmp_path)
    path = tmp_path / "run/checkpoints/step_4" / file
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=f"{file} is damaged: delete .*step_4 to go on from the checkpoint before it"):
        run(llama, tmp_path, resume=True)
    path.unlink()
    with pytest.raises(UserError, match=r"missing: delete .*step_4 to go on from the checkpoint before it"):
        run(llama, tmp_path, resume=True)


def test_a_save_that_fails_leaves_the_one_before_and_the_run_goes_on(tmp_path, llama, monkeypatch, capsys):
    real = checkpoint_files.save_weights

    def full(policy, model, at, gathered):
        if at.name == "step_4.part":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(policy, model, at, gathered)

    monkeypatch.setattr(checkpoint_files, "save_weights", full)
    run(llama, tmp_path)
    assert "warning: " in (said := capsys.readouterr().err) and "step_4: cannot be written: No space left" in said
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["step_2", "step_6"]
    assert (tmp_path / "run/model/model.safetensors").exists()


def test_the_config_of_another_loop_and_the_same_path_written_otherwise(tmp_path, own, monkeypatch):
    interrupted(own, tmp_path)
    with pytest.raises(UserError, match=r"step_4 is of a run of loops.sft, not of loops.dpo"):
        run(own, tmp_path, "dpo", resume=True)
    monkeypatch.chdir(tmp_path)
    assert len(run("llama", tmp_path, resume=True).metrics) == 6
    again = load(tmp_path / "run/config.yaml", {"resume": True})  # what a run writes can be resumed as it is
    assert again.output.overwrite is False and again.resume is True
