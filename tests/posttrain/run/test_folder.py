"""The run folder: what may be there already, what is removed, and that one run writes there."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from kit import run_loop, small_config, tiny_folder

from loops import sft
from posttrain.config import load
from posttrain.errors import UserError
from posttrain.run import folder, written

ROWS = [{"prompt": f"Is {i} even?", "completion": "Yes." if i % 2 == 0 else "No."} for i in range(4)]


def config(tmp_path, method="sft", **changes):
    return small_config(
        method, None if method == "pretrain" else "x", tmp_path, **{"output__overwrite": False} | changes
    )


def there(tmp_path, *names):
    """What an older run has left."""
    written.note(tmp_path / "run", *names, *(f"{name}/*" for name in names))
    for name in names:
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".jsonl", ".yaml", ".md", ".txt"):
            path.write_text("old")
        else:
            path.mkdir(exist_ok=True)


# ---------------------------------------------------------------- what may be there already


def test_a_fresh_folder_and_one_that_never_came_to_anything(tmp_path):
    assert folder.choose(config(tmp_path)) is None
    there(tmp_path, "metrics.jsonl", "config.yaml", "checkpoints/step_3.part")
    assert folder.choose(config(tmp_path)) is None and folder.choose(config(tmp_path, resume=True)) is None


def test_nothing_finished_or_begun_is_overwritten_unasked(tmp_path):
    there(tmp_path, "checkpoints/step_9", "checkpoints/step_10", "config.yaml")
    with pytest.raises(UserError, match=r"holds a run that has come to step 10: give --resume to go on with it"):
        folder.choose(config(tmp_path))
    assert folder.choose(config(tmp_path, resume=True)) == tmp_path / "run/checkpoints/step_10"
    assert folder.choose(config(tmp_path, output__overwrite=True)) is None
    there(tmp_path, "model")
    with pytest.raises(UserError, match=r"holds a finished run: give --output.overwrite to replace it"):
        folder.choose(config(tmp_path))
    assert folder.choose(config(tmp_path, resume=True)).name == "step_10"
    with pytest.raises(UserError, match="give one of the two"):
        folder.choose(config(tmp_path, resume=True, output__overwrite=True))


def test_a_finished_run_without_a_checkpoint_cannot_be_resumed(tmp_path):
    there(tmp_path, "model", "config.yaml")
    with pytest.raises(UserError, match=r"holds a finished run and no checkpoint to go on from"):
        folder.choose(config(tmp_path, resume=True))


@pytest.mark.parametrize(
    ("where", "message"),
    [("llama", r"is not the folder of a run \(it holds config.json\)"), ("", r"is not the folder of a run \(it holds llama\)"),
     ("llama/config.json", "is a file"), ("llama/config.json/below", "is a file")],
)  # fmt: skip
def test_a_folder_that_is_no_run(tmp_path, where, message):
    own = tiny_folder(tmp_path / "llama")
    with pytest.raises(UserError, match=message):
        run_loop(sft, own, tmp_path, rows=ROWS, output__dir=str(tmp_path / where))
    assert (Path(own) / "model.safetensors").exists()


def test_files_of_ones_own_beside_a_run_are_no_reason_to_stop(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    assert folder.choose(config(tmp_path)) is None
    (run / "my_other_things").mkdir()
    with pytest.raises(UserError, match=r"is not the folder of a run \(it holds my_other_things\)"):
        folder.choose(config(tmp_path))
    there(tmp_path, "metrics.jsonl")  # the folder of a run: whatever else lies there
    assert folder.choose(config(tmp_path)) is None


@pytest.mark.parametrize("name", [*folder.NAMES, "written.json", "config.json"])
def test_a_folder_that_no_run_has_marked_is_refused_whatever_it_holds(tmp_path, llama, name):
    mine = tmp_path / "run" / name if "." in name else tmp_path / "run" / name / "mine.bin"
    mine.parent.mkdir(parents=True)
    mine.write_text('{"by": "me", "files": ["config.json"]}')
    for changes in (
        {"output__overwrite": True},
        {"resume": True, "output__overwrite": False},
        {"output__overwrite": False},
    ):
        with pytest.raises(
            UserError, match=rf"is not the folder of a run \(it holds {name}\): no run has left its written.json"
        ):
            run_loop(sft, llama, tmp_path, rows=ROWS, **changes)
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [mine]


@pytest.mark.parametrize(
    "name", ["model/README.md", "checkpoints/step_1/mine.bin", "checkpoints/notes.md", "logs/mine.txt"]
)
def test_what_one_has_put_into_a_runs_folders_is_not_deleted_with_them(tmp_path, llama, name):
    run_loop(sft, llama, tmp_path, rows=ROWS, training__save_every=1)
    mine = tmp_path / "run" / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match=rf"{name} stands where a run writes, and was not written by the run in"):
        run_loop(sft, llama, tmp_path, rows=ROWS)
    assert mine.read_text() == "mine" and (tmp_path / "run/model/model.safetensors").exists()
    mine.unlink()
    assert len(run_loop(sft, llama, tmp_path, rows=ROWS).metrics) == 1
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_link_is_followed_nowhere(tmp_path, llama):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine.txt").write_text("mine")
    run_loop(sft, llama, tmp_path, rows=ROWS)
    (tmp_path / "run/checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="checkpoints stands where a run writes"):
        run_loop(sft, llama, tmp_path, rows=ROWS)
    assert (tmp_path / "elsewhere/mine.txt").exists()


@pytest.mark.parametrize(
    ("method", "key"),
    [("sft", "model.name"), ("sft", "model.adapter_path"), ("dpo", "model.reference"), ("ppo", "ppo.reward_model"), ("sft", "data.name"), ("pretrain", "data.name")],
)  # fmt: skip
def test_what_the_run_reads_must_not_lie_where_it_writes(tmp_path, method, key):
    there(tmp_path, "model", "config.yaml")
    inside = str(tmp_path / "run/../run/model")
    more = {"model.adapter_path": {"model.adapter": "lora"}, "ppo.reward_model": {"ppo.reward": None}}.get(key, {})
    made = config(tmp_path, method, output__overwrite=True, **{key: inside}, **more)
    if key == "data.name" and method == "sft":  # one of several
        made.data.name = ["elsewhere", inside]
    with pytest.raises(UserError, match=rf"{key} '.*' lies in the run folder .*, which this run overwrites"):
        folder.choose(made)


# ---------------------------------------------------------------- what is removed


def test_clearing_an_older_run_leaves_what_no_run_writes(tmp_path):
    there(
        tmp_path,
        "model",
        "start",
        "checkpoints/step_1",
        "checkpoints.old/step_9",
        "metrics.jsonl",
        "samples.md",
    )
    (tmp_path / "run/mine.txt").write_text("mine")
    folder.clear(config(tmp_path), None, False)
    try:
        left = {path.name for path in (tmp_path / "run").iterdir()}
        assert left == {"mine.txt", "config.yaml", "written.json"}
        assert load(tmp_path / "run/config.yaml").output.dir == str(tmp_path / "run")
    finally:
        folder.unlock(tmp_path / "run")


def test_a_resumed_run_keeps_all_but_the_mark_that_it_is_finished(tmp_path):
    there(tmp_path, "model/a.txt", "model.old/b.txt", "checkpoints/step_1", "metrics.jsonl", "start", "start.part")
    folder.clear(config(tmp_path, resume=True), tmp_path / "run/checkpoints/step_1", True)
    try:
        left = {path.name for path in (tmp_path / "run").iterdir()}
        assert left == {"model.old", "checkpoints", "metrics.jsonl", "start", "config.yaml", "written.json"}
        assert [path.name for path in (tmp_path / "run/model.old").iterdir()] == ["a.txt"]
        there(tmp_path, "model.part/c.txt", "model/d.txt")
        folder.put_model(tmp_path / "run")
        left = {path.name for path in (tmp_path / "run").iterdir()}
        assert left == {"model", "checkpoints", "metrics.jsonl", "start", "config.yaml", "written.json"}
        assert [path.name for path in (tmp_path / "run/model").iterdir()] == ["c.txt"]
    finally:
        folder.unlock(tmp_path / "run")


def test_the_merged_start_under_an_adapter_gets_its_name(tmp_path):
    there(tmp_path, "start", "start.part/new.txt")
    folder.clear(config(tmp_path), None, True)
    folder.unlock(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run/start").iterdir()] == ["new.txt"]
    assert not (tmp_path / "run/start.part").exists()


def test_a_start_is_written_whole_or_not_at_all(tmp_path):
    run = tmp_path / "run"
    there(tmp_path, "start.part/of_a_killed_run.txt")
    folder.write_start(run, lambda part: (part.mkdir(), (part / "new.txt").write_text("new")))
    assert [path.name for path in (run / "start.part").iterdir()] == ["new.txt"]
    assert written.stranger(run, "start.part") is None

    def full(part):
        part.mkdir()
        (part / "half.txt").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"start.part: cannot be written: No space left on device$"):
        folder.write_start(run, full)
    assert not (run / "start.part").exists()


def test_clearing_takes_the_checkpoints_first_and_all_at_once(tmp_path, llama):
    """Killed anywhere in there, no half of an old checkpoint is left to be resumed."""
    run_loop(sft, llama, tmp_path, rows=ROWS, training__save_every=1)

    def killed(path, **_):
        if Path(path).exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(written.shutil, "rmtree", killed)
        run_loop(sft, llama, tmp_path, rows=ROWS)
    assert not (tmp_path / "run/checkpoints").exists() and (tmp_path / "run/checkpoints.old/step_1").exists()
    assert len(run_loop(sft, llama, tmp_path, rows=ROWS).metrics) == 1
    assert not (tmp_path / "run/checkpoints.old").exists()


# ---------------------------------------------------------------- one run writes there


def test_two_runs_in_one_folder(tmp_path, llama):
    lock = str(folder.lock_path(tmp_path / "run"))
    code = f"import time; from filelock import FileLock; lock = FileLock({lock!r}); lock.acquire(); print('held', flush=True); time.sleep(60)"
    (tmp_path / "run").mkdir()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run is writing here"):
            run_loop(sft, llama, tmp_path, rows=ROWS)
        other.kill()
    assert len(run_loop(sft, llama, tmp_path, rows=ROWS).metrics) == 1
    assert not Path(lock).exists()  # finish has let it go


def test_the_lock_lies_outside_and_is_the_folders_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder.lock_path(Path("run")) == folder.lock_path(tmp_path / "a/../run") != folder.lock_path(tmp_path)
    assert not folder.lock_path(Path("run")).is_relative_to(tmp_path)
