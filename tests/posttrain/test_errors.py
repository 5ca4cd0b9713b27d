"""What the user can mend is one sentence and exit code 1; a bug keeps its traceback."""

import pytest
import torch.distributed as dist

from posttrain.errors import NonFiniteError, UserError, clear_exit, reason


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
    with clear_exit():
        pass
    assert left == []  # alone
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with pytest.raises(SystemExit), clear_exit():
        raise UserError("x")  # torchrun ends the others
    assert left == []
    with clear_exit():
        pass
    assert left == ["left"]


def test_the_reason_is_the_first_line_of_what_a_library_says():
    assert reason(OSError("\n  no such host\nand a page of advice")) == "no such host"
    assert reason(OSError()) == "OSError"
    outer = RuntimeError("while reading")
    outer.__cause__ = ValueError("while parsing")
    outer.__cause__.__cause__ = KeyError("a")
    assert reason(outer) == "while reading" and reason(outer, innermost=True) == "'a'"
