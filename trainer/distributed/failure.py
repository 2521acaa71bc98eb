"""The end of every rank when one of them fails, or is ended: one message, one exit code, no hang."""

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from trainer.distributed import environment
from trainer.errors import EXIT_USER_ERROR, UserError

_INTERRUPTED = 130

# An error that all ranks meet is told once: rank 0 speaks at once and ends the others, which give it, and
# every lower rank, a head start. Ranks that share cores can be a second or two behind one another. It counts
# from the start of MPI, in which ranks wait for each other: before it, no rank can end another.
_HEAD_START = 2.0  # seconds
_HEAD_START_PER_RANK = 0.25
_LONGEST_HEAD_START = 8.0

# What was written has to pass the launcher's pipes before the launcher is told to end everything.
_DELIVERY = 0.2  # seconds

_how_to_go_on: Callable[[], str] | None = None


def tell_when_ended(how_to_go_on: Callable[[], str]) -> None:
    """Have rank 0 say how to go on when the run is ended from outside.

    Ctrl-C under a launcher, a scheduler's time limit and the loss of another rank all reach a rank as
    SIGTERM, a second or two before SIGKILL (Open MPI 4.1). It then ends by that signal, as without this.

    Args:
        how_to_go_on: Returns the words; called when it happens.
    """
    global _how_to_go_on  # noqa: PLW0603  (a process ends once)
    if environment.rank() == 0:
        _how_to_go_on = how_to_go_on
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    # Not through sys.stderr: what was interrupted may be writing there.
    os.write(2, _interrupted("ended from outside").encode())
    os.kill(os.getpid(), number)


def _interrupted(what: str) -> str:
    return f"trainer: {what}{'' if _how_to_go_on is None else f'; {_how_to_go_on()}'}\n"


def fail(error: BaseException) -> NoReturn:
    """Tell about an error and end every rank of the run with its exit code.

    A `UserError` is told in its own words and ends with 2; any other exception with its traceback and 1.
    """
    rank = environment.rank()
    if rank > 0:
        if environment.launched():
            _mpi()
        time.sleep(min(_HEAD_START + _HEAD_START_PER_RANK * rank, _LONGEST_HEAD_START))
    sys.stdout.flush()
    sys.stderr.write(message(error, rank))
    sys.stderr.flush()
    code = exit_code(error)
    if not environment.launched():
        raise SystemExit(code) from None
    time.sleep(_DELIVERY)
    _abort(code)


def message(error: BaseException, rank: int) -> str:
    """Return what a rank prints about an error."""
    if isinstance(error, UserError):
        return f"trainer: error: {error}\n"
    if isinstance(error, KeyboardInterrupt):
        return _interrupted("interrupted")
    text = "".join(traceback.format_exception(error))
    return f"{text}trainer: rank {rank} failed, ending every rank\n" if environment.launched() else text


def exit_code(error: BaseException) -> int:
    """Return the exit code of a run that ends with an error."""
    if isinstance(error, UserError):
        return EXIT_USER_ERROR
    return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _abort(code: int) -> NoReturn:
    """End all ranks at once: a neighbour that waits in a receive would otherwise wait for ever."""
    if (mpi := _mpi()) is not None:
        mpi.COMM_WORLD.Abort(code)
    os._exit(code)


def _mpi() -> Any:
    """Return MPI, started, or None where it cannot be: it may be what is broken."""
    try:
        return importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError):
        return None
