"""The end of every rank when one of them fails: one message, one exit code, no hang."""

import os
import sys
import time
import traceback
from typing import NoReturn

from trainer import environment
from trainer.errors import EXIT_USER_ERROR, UserError

_INTERRUPTED = 130

# An error that all ranks meet is told once: rank 0 speaks at once and ends the others, which give it, and
# every lower rank, a head start. Ranks that share cores can be a second or two behind one another.
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
    try:
        from mpi4py import MPI  # noqa: PLC0415  (may be what is broken)

        MPI.COMM_WORLD.Abort(code)
    except ImportError:
        pass
    os._exit(code)
