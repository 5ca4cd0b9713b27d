"""What the user can mend is one sentence and exit code 1; a bug keeps its traceback."""

import errno
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from kit import environment

from posttrain import errors
from posttrain.errors import NonFiniteError, UserError, clear_exit, disk_reason, reason, writing


def test_a_problem_becomes_its_sentence(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    for problem in (UserError("row 3 is empty"), NonFiniteError("row 3 is empty")):
        with pytest.raises(SystemExit) as stopped, clear_exit():
            raise problem
        assert stopped.value.code == "error: row 3 is empty"  # to stderr, with exit code 1
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(SystemExit) as stopped, clear_exit():
        raise UserError("x")
    assert stopped.value.code == "error in process 2: x"


def test_an_interruption_says_what_is_left():
    with pytest.raises(SystemExit) as stopped, clear_exit():
        raise KeyboardInterrupt
    assert stopped.value.code.startswith("interrupted: nothing was saved as finished")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), clear_exit():
        1 / 0  # noqa: B018
    with clear_exit():
        pass


def test_one_of_several_processes_takes_its_leave_at_a_good_end(monkeypatch):
    left = []
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append("left"))
    monkeypatch.setattr(errors.atexit, "_run_exitfuncs", lambda: left.append("what was to be done at the end"))
    monkeypatch.setattr(errors.os, "_exit", left.append)
    with clear_exit():
        pass
    assert left == []  # alone
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with pytest.raises(SystemExit), clear_exit():
        raise UserError("x")  # torchrun ends the others
    assert left == []
    with clear_exit():
        pass
    assert left == ["left", "what was to be done at the end", 0]


def test_the_reason_is_the_first_line_of_what_a_library_says():
    assert reason(OSError("\n  no such host\nand a page of advice")) == "no such host"
    assert reason(OSError()) == "OSError"
    outer = RuntimeError("while reading")
    outer.__cause__ = ValueError("while parsing")
    outer.__cause__.__cause__ = KeyError("a")
    assert reason(outer) == "while reading" and reason(outer, innermost=True) == "'a'"


def test_what_the_file_system_says_of_python_rust_and_c(tmp_path):
    full = "No space left on device"
    assert disk_reason(OSError(errno.ENOSPC, full)) == full
    rust = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert disk_reason(RuntimeError(rust)) == full
    with pytest.raises(RuntimeError) as stopped:
        torch.save({}, tmp_path / "nowhere" / "x.pt")
    assert disk_reason(stopped.value) == f"Parent directory {tmp_path / 'nowhere'} does not exist"
    torn = "[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598"
    assert disk_reason(RuntimeError(torn)) == "the disk is full, or cannot be written"
    for other in (ConnectionResetError(errno.ECONNRESET, "x"), OSError("no errno"), RuntimeError("x"), UserError(rust)):
        assert disk_reason(other) is None
    with (
        pytest.raises(UserError, match=f"^x.json: cannot be written: {full}: make room$"),
        writing("x.json", ": make room"),
    ):
        raise OSError(errno.ENOSPC, full)
    with pytest.raises(ZeroDivisionError), writing("x.json"):
        1 / 0  # noqa: B018


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit) as stopped, clear_exit():
        (tmp_path / "gone").read_text()
    assert stopped.value.code == f"error: {tmp_path / 'gone'}: No such file or directory"
    with pytest.raises(SystemExit) as stopped, clear_exit("\n(--help lists every key)"):
        raise UserError("x")
    assert stopped.value.code == "error: x\n(--help lists every key)"


def test_a_library_that_ends_its_first_line_in_a_colon_is_heard_out():
    assert reason(ValueError("one of: \n(1) this\n\nor (2) that\n")) == "one of: (1) this or (2) that"


def test_nobody_listens_any_more_and_no_room_for_what_is_printed():
    """python -m … | head, and python -m … > /dev/full: the descriptor alone is given, nothing is done to the device."""
    code = "from posttrain.errors import clear_exit\nwith clear_exit():\n    for _ in range(9999): print('x' * 99)"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True
    ) as head:
        head.stdout.close()
        assert head.stderr.read() == "" and head.wait() == 1
    read, write = os.pipe()
    os.close(read)
    out = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment(), text=True, check=False)
    os.close(write)
    assert (out.returncode, out.stderr) == (1, "")
