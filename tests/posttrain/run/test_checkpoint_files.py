"""The files of a checkpoint: whole or not there at all, read without running code, and the very same numbers again."""

import errno
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from posttrain.errors import UserError
from posttrain.run import checkpoint_files
from posttrain.run.checkpoint_files import all_steps, latest, path_of, prune, read, write


def fill(part):
    (part / "model").mkdir()
    (part / "model/a.txt").write_text("a")


def test_a_checkpoint_gets_its_name_when_it_is_whole(tmp_path):
    seen = []
    write(tmp_path, 3, lambda part: seen.append((part.name, all_steps(tmp_path))) or fill(part))
    assert seen == [("step_3.part", [])] and all_steps(tmp_path) == [3]
    assert (tmp_path / "checkpoints/step_3/model/a.txt").read_text() == "a"
    write(tmp_path, 3, lambda part: pytest.fail("the same step is not written twice"))
    write(tmp_path, 20, fill)
    assert all_steps(tmp_path) == [3, 20] and latest(tmp_path) == path_of(tmp_path, 20)  # by number, not by name


def test_no_checkpoints_and_other_files_beside_them(tmp_path):
    assert all_steps(tmp_path) == [] and latest(tmp_path) is None
    for name in ("step_4.part", "step_x", "step_5 (copy)"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert all_steps(tmp_path) == []


def test_what_a_killed_save_has_left_is_not_taken_over(tmp_path):
    (tmp_path / "checkpoints/step_2.part/old").mkdir(parents=True)
    write(tmp_path, 2, fill)
    assert [p.name for p in path_of(tmp_path, 2).iterdir()] == ["model"]


def test_a_save_that_fails_leaves_nothing(tmp_path):
    def full(part):
        fill(part)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"step_2: cannot be written: No space left on device"):
        write(tmp_path, 2, full)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    with pytest.raises(ZeroDivisionError):  # a bug is no full disk
        write(tmp_path, 2, lambda part: 1 / 0)


def test_what_no_run_has_written_is_not_removed(tmp_path):
    for step in (1, 2):
        write(tmp_path, step, fill)
    mine = [tmp_path / "checkpoints" / name for name in ("step_1/mine.txt", "step_3.part/mine.txt")]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    prune(tmp_path, 1, set())
    with pytest.raises(UserError, match="step_3: cannot be written: File exists"):
        write(tmp_path, 3, fill)
    assert [path.read_text() for path in mine] == ["mine", "mine"] and all_steps(tmp_path) == [1, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what a file descriptor is")
def test_every_file_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    done, real = [], os.replace

    def named(*paths):
        done.append("replace")
        real(*paths)

    monkeypatch.setattr(
        os, "fsync", lambda descriptor: done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
    )
    monkeypatch.setattr(os, "replace", named)
    write(tmp_path, 1, fill)
    note = ["written.json.part", "replace"]  # what is the run's own, noted before it is there
    assert sorted(done[2:5]) == ["a.txt", "model", "step_1.part"]
    assert done[:2] + done[5:] == [*note, *note, "replace", "checkpoints"]


def test_the_newest_and_the_best_stay(tmp_path):
    for step in (1, 2, 3, 4, 5):
        write(tmp_path, step, fill)
    (tmp_path / "checkpoints/step_9.part").mkdir()
    prune(tmp_path, 2, {2})
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_2", "step_4", "step_5"]


def test_what_cannot_be_read_is_named(tmp_path):
    for name, content in (("run.json", "{"), ("loop.pt", "half")):
        path = tmp_path / "step_4" / name
        path.parent.mkdir(exist_ok=True)
        with pytest.raises(UserError, match=f"{name} is missing: delete .*step_4 to go on from the checkpoint before"):
            read(path)
        path.write_text(content)
        with pytest.raises(UserError, match=f"{name} is damaged: delete .*step_4 to go on from the checkpoint before"):
            read(path)
    (tmp_path / "step_4/run.json").write_text('{"step": 4}')
    assert read(tmp_path / "step_4/run.json") == {"step": 4}


def test_random_states_go_on_where_they_were(tmp_path):
    def draw():
        return random.random(), numpy.random.rand(), torch.rand(1).item(), random.gauss(0, 1), numpy.random.randn()

    before = checkpoint_files.random_states()
    try:
        draw()
        torch.save(checkpoint_files.random_states(), tmp_path / "loop.pt")
        first, second = draw(), draw()
        checkpoint_files.restore_random_states(read(tmp_path / "loop.pt"))
        assert draw() == first and draw() == second and first != second
    finally:
        checkpoint_files.restore_random_states(before)


@dataclass
class Inner:
    ids: list


@dataclass
class Outer:
    inner: Inner
    by_name: dict


def test_plain_takes_dataclasses_apart_all_the_way_down():
    tensor = torch.ones(1)
    out = checkpoint_files.plain({3: [Outer(Inner([1, 2]), {"a": Inner([3])})], "t": (tensor, 0.5)})
    assert out == {3: [{"inner": {"ids": [1, 2]}, "by_name": {"a": {"ids": [3]}}}], "t": (tensor, 0.5)}


class Policy(nn.Module):
    """A model, and a head that the model's own folder does not hold."""

    def __init__(self, value):
        super().__init__()
        self.model, self.head, self.frozen = nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Linear(1, 1)
        self.frozen.requires_grad_(False)
        for parameter in self.parameters():
            parameter.data.fill_(value)


def saved(folder, policy, **stored):
    (folder / "model").mkdir(parents=True)
    save_file(stored or {"weight": policy.model.weight.data}, folder / "model/model.safetensors")
    gathered = {name: p.detach() for name, p in policy.named_parameters() if p.requires_grad}
    checkpoint_files.save_weights(policy, policy.model, folder, gathered)
    return read(folder / "weights.pt")


def test_weights_that_the_model_folder_holds_are_not_written_twice(tmp_path):
    state = saved(tmp_path / "a", Policy(3.0))
    assert state["in_model"] == {"model.weight": "weight"} and set(state["tensors"]) == {"head.weight"}
    other = Policy(0.0)
    checkpoint_files.load_weights(other, tmp_path / "a")
    assert other.model.weight.tolist() == [[3.0, 3.0]] and other.head.weight.tolist() == [[3.0]]
    assert other.frozen.weight.item() == 0.0 and other.model.weight.requires_grad


def test_rounded_or_cut_weights_in_the_folder_do_not_count_as_held(tmp_path):
    policy = Policy(3.0)
    for name, stored in {"bf16": policy.model.weight.data.bfloat16(), "cut": torch.ones(1, 1)}.items():
        state = saved(tmp_path / name, policy, weight=stored)
        assert state["in_model"] == {} and set(state["tensors"]) == {"model.weight", "head.weight"}


def test_weights_of_another_run_are_refused(tmp_path):
    saved(tmp_path / "a", Policy(3.0))
    other = Policy(0.0)
    other.frozen.requires_grad_(True)
    with pytest.raises(UserError, match="it holds other trained tensors than this run has"):
        checkpoint_files.load_weights(other, tmp_path / "a")
    (tmp_path / "a/model/model.safetensors").unlink()
    with pytest.raises(UserError, match=r"weight is missing: delete .*a to go on from the checkpoint before it"):
        checkpoint_files.load_weights(Policy(0.0), tmp_path / "a")
    (tmp_path / "a/model/model.safetensors").write_bytes(b"half")
    with pytest.raises(
        UserError, match=r"model.safetensors is damaged: delete .*a to go on from the checkpoint before"
    ):
        checkpoint_files.load_weights(Policy(0.0), tmp_path / "a")
