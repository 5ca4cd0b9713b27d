import builtins
import errno
import io
import json

import pytest

from posttrain.run.lines import Lines


def test_what_was_written_after_the_checkpoint_is_cut_off(tmp_path):
    file = Lines(tmp_path / "rollouts.jsonl", pytest.fail)
    assert file.length() == 0
    file.cut(0)  # there is none
    file.add()
    assert list(tmp_path.iterdir()) == []
    file.add(json.dumps(answer, ensure_ascii=False) for answer in ("größer ⏎", "\ud800"))
    there = file.length()
    file.add(['"later"'])
    with open(file.path, "a") as other:
        other.write('"killed in the mid')
    file.cut(there)
    text = file.path.read_text(encoding="utf-8")
    assert "größer" in text  # readable
    assert [json.loads(line) for line in text.splitlines()] == ["größer ⏎", "\ud800"]
    file.cut(there + 100)  # never made longer
    assert file.length() == there


ROOM = [5]


class Full(io.FileIO):
    """Takes five bytes, and then no more: what a disk does when it gets full."""

    def write(self, text):
        if not ROOM[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = super().write(text[: ROOM[0]])
        ROOM[0] -= taken
        return taken


def test_lines_that_a_full_disk_refuses_are_written_when_there_is_room(tmp_path, monkeypatch):
    said = []
    file = Lines(tmp_path / "metrics.jsonl", said.append)
    file.add(["1", "2"])
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", lambda path, mode, buffering: Full(path, mode))
        file.add(["3"])
        file.add(["4444"])
        file.add(["5555"])
    assert file.path.read_text() == "1\n2\n3\n"  # no half of a line
    assert len(said) == 1 and "metrics.jsonl cannot be written (No space left on device): the run goes on" in said[0]
    file.add(["6"])
    assert file.path.read_text() == "1\n2\n3\n4444\n5555\n6\n"
