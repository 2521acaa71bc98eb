"""How every rank exits when one fails or all stop: one message, one exit code, no hang."""

import contextlib
import ctypes
import importlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from trainer.distributed import environment
from trainer.distributed.daemon import end_daemon_later
from trainer.distributed.heartbeat import heartbeat
from trainer.distributed.limits import explain
from trainer.errors import EXIT_SAVED, EXIT_USER_ERROR, StoppedEarly, TrainingError, UserError, notes

_INTERRUPTED = 130

# An error that all ranks raise is printed once: rank 0 prints it at once and aborts the others, which give
# every lower rank a head start. Ranks that share cores can lag one another by a second or two. The head start
# counts from MPI_Init, in which ranks wait for one another: before that, no rank can abort another.
_HEAD_START = 2.0  # seconds
_HEAD_START_PER_RANK = 0.25
_LONGEST_HEAD_START = 8.0

# The message has to pass the launcher's pipes before the launcher ends, which drops what it has not read.
DELIVERY = 0.2  # seconds

_PATIENCE = 2.0  # seconds for MPI to start, if it is about to
_POLL = 0.02  # seconds
_OPEN_MPI = "libmpi.so.40"  # of every Open MPI 4

_resume_hint: Callable[[], str] | None = None
_announced = False  # whether this rank has said already how to resume


def set_resume_hint(hint: Callable[[], str]) -> None:
    """Let the message of an interrupted run say how to resume it."""
    global _resume_hint  # noqa: PLW0603  (a process exits once)
    _resume_hint = hint


def resume_hint() -> str:
    """Return how to resume the run; empty before there is one."""
    return "" if _resume_hint is None else _resume_hint()


def print_at_once(text: str) -> None:
    """Print a line, from any thread; not through sys.stderr, to which the main thread may be writing."""
    with contextlib.suppress(OSError):
        os.write(2, f"trainer: {text}\n".encode(errors="replace"))


def announce_end(text: str) -> None:
    """Print how to resume, before it is certain that there is time to stop in order, and not again after."""
    global _announced  # noqa: PLW0603  (a process exits once)
    _announced = True
    print_at_once(text)


def fail(error: BaseException) -> NoReturn:
    """Report an error and abort every rank of the run with its exit code.

    A `UserError` prints only its message and exits with 2, a `StoppedEarly` likewise with 75; any other
    exception prints its traceback and exits with 1.
    """
    rank = environment.rank()
    heartbeat.leave()
    if rank > 0:
        if environment.launched():
            _mpi()
        give_head_start(rank)
    sys.stdout.flush()
    if not (_announced and isinstance(error, StoppedEarly)):
        sys.stderr.write(message(error, rank))
    sys.stderr.flush()
    code = exit_code(error)
    if not environment.launched():
        raise SystemExit(code) from None
    time.sleep(DELIVERY)
    _abort(code)


def give_head_start(rank: int) -> None:
    """Wait while lower ranks report what all ranks raise; the first of them ends this one."""
    time.sleep(min(_HEAD_START + _HEAD_START_PER_RANK * rank, _LONGEST_HEAD_START))


def message(error: BaseException, rank: int) -> str:
    """Return the text that a rank prints for an error."""
    if isinstance(error, (UserError, TrainingError)):
        return f"trainer: error: {'; '.join([str(error), *notes(error)])}\n"
    if isinstance(error, StoppedEarly):
        return f"trainer: {error}\n"
    if isinstance(error, KeyboardInterrupt):
        hint = "" if _resume_hint is None else f"; {_resume_hint()}"
        return f"trainer: interrupted{hint}\n"
    text = "".join(traceback.format_exception(error))
    if sys.version_info < (3, 11):  # which does not print notes
        text += "".join(f"{note}\n" for note in notes(error))
    if (limit := explain(error)) is not None:
        text += f"trainer: {_place(rank)}{limit}\n"
    return f"{text}trainer: rank {rank} failed; aborting all ranks\n" if environment.launched() else text


def _place(rank: int) -> str:
    """Return such as "rank 1 (stage 1, replica 0, host h2): ", once that is known."""
    text = heartbeat.text
    if "replica" not in text:
        return ""
    stages = " and ".join(map(str, text.get("stages", [])))
    host = socket.gethostname()
    return f"rank {rank} (stage {stages}, replica {text['replica']}, layers {text['layers']}, host {host}): "


def exit_code(error: BaseException) -> int:
    """Return the exit code of a run that fails with an error."""
    if isinstance(error, UserError):
        return EXIT_USER_ERROR
    if isinstance(error, StoppedEarly):
        return EXIT_SAVED
    return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def abort_from_thread(code: int) -> NoReturn:
    """End all ranks, from a thread that is not the main one, whatever the main one does."""
    heartbeat.leave()
    end = time.monotonic() + _PATIENCE
    while environment.launched() and not _mpi_runs() and time.monotonic() < end:
        time.sleep(_POLL)  # mpirun has ten lines on a rank that ends before MPI has started
    if environment.launched() and _mpi_runs():
        _abort(code)
    os._exit(code)


def _abort(code: int) -> NoReturn:
    """Abort all ranks at once: a neighbour that waits in a receive would otherwise wait forever."""
    end_daemon_later()
    if (mpi := _mpi()) is not None:
        _abort_silently(code)
        mpi.COMM_WORLD.Abort(code)
    os._exit(code)


def _abort_silently(code: int) -> None:
    """Abort as MPI_Abort does, without its seven lines about itself, where this is Open MPI 4."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        library = ctypes.CDLL(_OPEN_MPI, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        world = ctypes.addressof(ctypes.c_char.in_dll(library, "ompi_mpi_comm_world"))
        library.ompi_mpi_abort.argtypes = [ctypes.c_void_p, ctypes.c_int]
        library.ompi_mpi_abort(world, code)


def _mpi_runs() -> bool:
    """Return whether MPI has started, and not ended, without starting it."""
    mpi = sys.modules.get("mpi4py.MPI")
    started, ended = (getattr(mpi, name, None) for name in ("Is_initialized", "Is_finalized"))
    return started is not None and ended is not None and started() and not ended()


def _mpi() -> Any:
    """Return MPI, initialised, or None if it cannot be: MPI itself may be the failure."""
    try:
        return importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError):
        return None
