"""One exception for what the user can mend, and the one place that turns it into a sentence and an exit code."""

import contextlib
import os
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """Bad input or a run that must not go on. The message names the file, row or key, what was expected, and what to
    do."""


class NonFiniteError(UserError):
    """A loss or gradient norm that is NaN or infinite. The weights have not been touched by it."""


def reason(error: BaseException, *, innermost: bool = False) -> str:
    """The first line of what a library says went wrong. innermost: of the cause of the cause (some wrap it in their
    own)."""
    while innermost and error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def clear_exit() -> Iterator[None]:
    """Around a command: a UserError becomes one sentence on stderr and exit code 1, without a traceback."""
    try:
        yield
        _leave_the_others()
    except UserError as problem:
        rank = os.environ.get("RANK", "0")
        sys.exit(f"error{'' if rank == '0' else f' in process {rank}'}: {problem}")
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing was saved as finished; a run with checkpoints goes on with --resume")


def _leave_the_others() -> None:
    """One of several processes that just ends may be aborted (exit code -6): threads still listen to the others."""
    group = sys.modules.get("torch.distributed")
    if group is not None and group.is_available() and group.is_initialized():
        group.destroy_process_group()
