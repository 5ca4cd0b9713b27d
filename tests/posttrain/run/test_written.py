import json

import pytest

from posttrain.errors import UserError
from posttrain.run import written
from posttrain.run.folder import refuse_strangers


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def test_a_folder_without_the_note_is_nobodys(tmp_path):
    make(tmp_path, "config.yaml")
    assert written.noted(tmp_path) is None and written.stranger(tmp_path, "config.yaml") == tmp_path / "config.yaml"
    for text in ("", "[]", '{"files": []}', '{"by": "me", "files": ["config.yaml"]}', '{"by": "posttrain"}'):
        (tmp_path / "written.json").write_text(text)
        assert written.noted(tmp_path) is None and not written.remove(tmp_path, "config.yaml")
    (tmp_path / "other").write_text('{"by": "posttrain", "files": ["config.yaml"]}')
    (tmp_path / "written.json").unlink()
    (tmp_path / "written.json").symlink_to(tmp_path / "other")
    assert written.noted(tmp_path) is None


def test_a_first_note_that_a_kill_left_half_written_is_the_runs(tmp_path):
    assert not written.begun(tmp_path)
    written.note(tmp_path, "config.yaml")
    whole = (tmp_path / "written.json").read_bytes()
    assert whole.startswith(written.BEGINNING)
    (tmp_path / "written.json").unlink()
    for length in (0, 1, 10, 25, len(whole)):
        (tmp_path / "written.json.part").write_bytes(whole[:length])
        assert written.begun(tmp_path)
        refuse_strangers(tmp_path)
    for text in ("my own", '{\n "by": "me",', "{}"):
        (tmp_path / "written.json.part").write_text(text)
        assert not written.begun(tmp_path)
        with pytest.raises(UserError, match=r"it holds written.json.part"):
            refuse_strangers(tmp_path)
    (tmp_path / "written.json.part").rename(tmp_path / "other")
    (tmp_path / "other").write_bytes(whole)
    (tmp_path / "written.json.part").symlink_to(tmp_path / "other")
    assert not written.begun(tmp_path)


def test_what_is_noted_is_removed_whole_or_not_at_all(tmp_path):
    written.note(tmp_path, "a.txt", "logs/*.log", "model.part/*")
    make(tmp_path, "a.txt", "logs/1.log", "logs/deep/2.log", "model.part/x/y")
    assert all(written.remove(tmp_path, name) for name in ("a.txt", "logs", "model.part", "never there"))
    make(tmp_path, "logs/1.log", "logs/mine.txt")
    assert written.stranger(tmp_path, "logs") == tmp_path / "logs/mine.txt"
    assert not written.remove(tmp_path, "logs") and (tmp_path / "logs/1.log").exists()
    (tmp_path / "a.txt").symlink_to(tmp_path / "logs/mine.txt")
    assert not written.remove(tmp_path, "a.txt")


def test_a_renamed_folder_takes_only_its_own_along(tmp_path):
    written.note(tmp_path, "model.part/*")
    make(tmp_path, "model.part/a", "model.part/sub/b")
    written.rename(tmp_path, "model.part", "model")
    assert written.stranger(tmp_path, "model") is None
    make(tmp_path, "model/mine")
    written.rename(tmp_path, "model", "model.old")
    assert written.stranger(tmp_path, "model.old") == tmp_path / "model.old/mine"
    written.note(tmp_path)
    make(tmp_path, "model/a")  # of a name that was the run's own once
    assert written.stranger(tmp_path, "model") == tmp_path / "model/a"


def test_a_note_is_there_whole_or_as_it_was(tmp_path, monkeypatch):
    written.note(tmp_path, "a")
    before = (tmp_path / "written.json").read_text()
    assert json.loads(before)["files"] == ["a", "written.json", "written.json.part"]
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(written.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
        written.note(tmp_path, "b")
    assert [p.name for p in tmp_path.iterdir()] == ["written.json"]
    assert (tmp_path / "written.json").read_text() == before
