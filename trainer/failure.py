"""The end of every rank when one of them fails: one message, one exit code, no hang."""

import importlib
import os
import sys
import time
import traceback
from typing import Any, NoReturn

from trainer import environment
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
    sys.stderr.write(_message(error, rank))
    sys.stderr.flush()
    code = _exit_code(error)
    if not environment.launched():
        raise SystemExit(code) from None
    time.sleep(_DELIVERY)
    _abort(code)


def _message(error: BaseException, rank: int) -> str:
    if isinstance(error, UserError):
        return f"trainer: error: {error}\n"
    if isinstance(error, KeyboardInterrupt):
        return "trainer: interrupted\n"
    text = "".join(traceback.format_exception(error))
    return f"{text}trainer: rank {rank} failed, ending every rank\n" if environment.launched() else text


def _exit_code(error: BaseException) -> int:
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
