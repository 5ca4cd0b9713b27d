"""A line that was acknowledged is on the disk, whole, whatever happens next."""

import errno
import json
import os
import resource
import subprocess
import sys

import pytest

from posttrain import ROOT
from posttrain.errors import UserError
from posttrain.serving.appended import Appended


def is_ours(row):
    return isinstance(row, dict) and "n" in row


@pytest.fixture
def opened():
    held = []

    def again(path):
        if held:
            held.pop().close()
        held.append(Appended(path, is_ours, "votes"))
        return held[0], held[0].open()

    yield again
    while held:
        held.pop().close()


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_grows_and_is_read_again(tmp_path, opened):
    path = tmp_path / "new" / "votes.jsonl"
    file, held = opened(path)
    assert held == [] and not path.parent.exists()  # nothing is made before there is something to keep
    file.add({"prompt": "é\n\u2028", "n": 1})
    file.add({"prompt": "b", "n": 2})
    assert path.read_bytes() == '{"prompt": "é\\n\u2028", "n": 1}\n{"prompt": "b", "n": 2}\n'.encode()
    assert opened(path)[1] == [{"prompt": "é\n\u2028", "n": 1}, {"prompt": "b", "n": 2}]


def test_it_is_on_the_disk_before_anybody_is_told(tmp_path, opened, monkeypatch):
    synced, really = [], os.fsync

    def fsync(file):
        really(file)
        synced.append((os.readlink(f"/proc/self/fd/{file}"), os.fstat(file).st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "votes.jsonl"
    file, _ = opened(path)
    file.add({"prompt": "a", "n": 1})
    assert [name for name, _ in synced] == [str(path), str(tmp_path)]  # the file, and its name in the folder
    assert synced[0][1] == path.stat().st_size == len('{"prompt": "a", "n": 1}\n')
    file.add({"prompt": "a", "n": 2})
    assert [name for name, _ in synced[2:]] == [str(path)]


@pytest.mark.parametrize(
    "left", [b'{"prompt": "what is', b'{"pro', b"\0\0\0\0", b'{"prompt": "a", "n"\0\0', b'{"prompt": "\xc3']
)
def test_what_a_kill_left_of_a_line_is_moved_away(tmp_path, opened, left):
    path = tmp_path / "votes.jsonl"
    path.write_bytes(b'{"prompt": "a", "n": 1}\n' + left)
    Appended(path, is_ours, "votes")  # looks, and touches nothing
    assert path.read_bytes().endswith(left) and not list(tmp_path.glob("*.torn"))
    file, held = opened(path)
    assert held == [{"prompt": "a", "n": 1}] and path.read_bytes() == b'{"prompt": "a", "n": 1}\n'
    assert (tmp_path / "votes.jsonl.torn").read_bytes() == left + b"\n"
    file.add({"prompt": "b", "n": 2})
    assert [row["n"] for row in rows(path)] == [1, 2]


def test_a_last_line_that_only_lacks_its_newline_stays(tmp_path, opened):
    path = tmp_path / "votes.jsonl"
    path.write_bytes(b'{"prompt": "a", "n": 1}\n\n{"prompt": "b", "n": 2}')
    file, held = opened(path)
    file.add({"prompt": "c", "n": 3})
    assert [row["n"] for row in held] == [1, 2] and not list(tmp_path.glob("*.torn"))
    assert path.read_bytes().endswith(b'"n": 2}\n{"prompt": "c", "n": 3}\n')


@pytest.mark.parametrize(
    ("held", "line"),
    [(b'{"prompt": "a"}\n', 1), (b'{"prompt": "a", "n": 1}\nnotes of mine\n', 2), (b"notes of mine", 1), (b"\xff\xfe\n", 1),
     (b'{"prompt": "a", "n": 1}\n[1', 2), (b'{"prompt": "a", "n": 1}\n{"prompt": "half\n', 2)],
)  # fmt: skip
def test_a_file_of_somebody_elses_is_refused_and_left_alone(tmp_path, opened, held, line):
    path = tmp_path / "votes.jsonl"
    path.write_bytes(held)
    with pytest.raises(UserError, match=f"votes.jsonl, line {line}: none of the votes of this page: name another"):
        opened(path)
    assert path.read_bytes() == held and [p.name for p in tmp_path.iterdir()] == ["votes.jsonl"]
    path.unlink()
    opened(path)  # the refused one does not hold the lock


def test_two_servers_do_not_write_to_one_file(tmp_path, opened):
    path = tmp_path / "votes.jsonl"
    opened(path)
    code = (
        "import sys; from pathlib import Path; from posttrain.serving.appended import Appended\n"
        "Appended(Path(sys.argv[1]), dict, 'votes').open()"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert "votes.jsonl: another server writes its votes there: give this one a file of its own" in ran.stderr


@pytest.mark.parametrize("room", [0, 9])
def test_a_full_disk_takes_nothing_and_breaks_nothing(tmp_path, opened, room):
    path = tmp_path / "votes.jsonl"
    file, _ = opened(path)
    file.add({"prompt": "a", "n": 1})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, limits[1]))  # of the second line 0 or 9 bytes fit
    try:
        with pytest.raises(OSError) as problem:
            file.add({"prompt": "b", "n": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert problem.value.errno == errno.EFBIG and path.read_bytes() == before
    file.add({"prompt": "b", "n": 2})
    assert [row["n"] for row in rows(path)] == [1, 2]


def test_a_disk_that_fails_to_sync_is_not_believed(tmp_path, opened, monkeypatch):
    path = tmp_path / "votes.jsonl"
    file, _ = opened(path)

    def fails(file):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(os, "fsync", fails)
        file.add({"prompt": "a", "n": 1})
    assert path.read_bytes() == b""


WRITER = """
import sys
from pathlib import Path
from posttrain.serving.appended import Appended
file, n = Appended(Path(sys.argv[1]), dict, "votes"), 0
file.open()
while True:
    file.add({"prompt": "x" * 5000, "n": n})
    print(n, flush=True)
    n += 1
"""


@pytest.mark.parametrize("lines", [1, 40, 200])
def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path, opened, lines):
    path = tmp_path / "votes.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for _ in range(lines):
        writer.stdout.readline()
    writer.kill()
    told = lines + len(writer.stdout.read().splitlines())
    writer.wait()
    kept = [row["n"] for row in opened(path)[1]]
    assert kept == list(range(len(kept))) and len(kept) >= told >= lines
