"""One exception for what the user can mend, and the one place that turns it, and what the file system says, into a
sentence and an exit code. A bug keeps its traceback."""

import atexit
import contextlib
import os
import re
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """Bad input or a run that must not go on. The message names the file, row or key, what was expected, and what to
    do."""


class NonFiniteError(UserError):
    """A loss or gradient norm that is NaN or infinite. The weights have not been touched by it."""


def reason(error: BaseException, *, innermost: bool = False) -> str:
    """The first line of what a library says went wrong (four, where the first ends in a colon). innermost: of the cause
    of the cause (some wrap it in their own)."""
    while innermost and error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:4]) if lines[0].endswith(":") else lines[0]


def disk_reason(error: BaseException) -> str | None:
    """What the file system says ("No space left on device", "Permission denied"); None of an error of another kind.

    safetensors and tokenizers (Rust) and torch.save (C++) tell of it in exceptions of their own."""
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
        return error.strerror
    if isinstance(error, UserError):
        return None
    text = str(error)
    if found := re.search(r"([^:()]+?) \(os error \d+\)", text):
        return found[1].strip()
    if found := re.search(r"failed with strerror: (.+)|(Parent directory .* does not exist)", text):
        return found[1] or found[2]
    if "inline_container" in text or "iostream error" in text:  # torch.save does not say why
        return "the disk is full, or cannot be written"
    return None


@contextlib.contextmanager
def writing(what: object, advice: str = "") -> Iterator[None]:
    """Around what writes the file or folder `what`: an error of the file system becomes one sentence that names it."""
    try:
        yield
    except Exception as problem:
        if (why := disk_reason(problem)) is None:
            raise
        raise UserError(f"{what}: cannot be written: {why}{advice}") from None


@contextlib.contextmanager
def clear_exit(hint: str = "") -> Iterator[None]:
    """Around a command: a UserError, and whatever the file system says, becomes one sentence on stderr and exit code 1,
    without a traceback. hint: a line to put below the sentence of a UserError."""
    try:
        yield
        sys.stdout.flush()
        _leave_the_others()
    except UserError as problem:
        sys.exit(f"{_prefix()}: {problem}{hint}")
    except BrokenPipeError:  # python -m … | head
        _give_up_stdout()
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing was saved as finished; a run with checkpoints goes on with --resume")
    except Exception as problem:
        if (why := disk_reason(problem)) is None:
            raise
        if (file := getattr(problem, "filename", None)) is None:
            _give_up_stdout()  # it may be what could not be written
        sys.exit(f"{_prefix()}: {'a file could not be read or written' if file is None else os.fsdecode(file)}: {why}")


def _prefix() -> str:
    rank = os.environ.get("RANK", "0")
    return f"error{'' if rank == '0' else f' in process {rank}'}"


def _give_up_stdout() -> None:
    """Python would try to write what is left of it once more, and tell of that too."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave_the_others() -> None:
    """One of several processes that just ends may be aborted (exit code -6): threads still listen to the others, and
    the interpreter takes their objects down around them. So its work is done here, and the process left at once."""
    group = sys.modules.get("torch.distributed")
    if group is not None and group.is_available() and group.is_initialized():
        group.destroy_process_group()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
