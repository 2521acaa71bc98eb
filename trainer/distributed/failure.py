"""How every rank exits when one fails or is terminated: one message, one exit code, no hang."""

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from trainer.distributed import environment
from trainer.errors import EXIT_USER_ERROR, TrainingError, UserError, notes

_INTERRUPTED = 130

# An error that all ranks raise is printed once: rank 0 prints it at once and aborts the others, which give
# every lower rank a head start. Ranks that share cores can lag one another by a second or two. The head start
# counts from MPI_Init, in which ranks wait for one another: before that, no rank can abort another.
_HEAD_START = 2.0  # seconds
_HEAD_START_PER_RANK = 0.25
_LONGEST_HEAD_START = 8.0

# The message has to pass the launcher's pipes before the launcher ends, which drops what it has not read.
_DELIVERY = 0.2  # seconds

_resume_hint: Callable[[], str] | None = None
_hint_printed = threading.Event()
_signals_reach_a_thread = False


def print_resume_hint_when_terminated(resume_hint: Callable[[], str]) -> None:
    """Have rank 0 print how to resume when a signal terminates the run.

    Ctrl-C under a launcher, a scheduler's time limit and the loss of another rank all reach a rank as
    SIGTERM, a second or two before SIGKILL (Open MPI 4.1). After printing, the rank still dies of SIGTERM.

    Args:
        resume_hint: Returns the text; called in a thread when the signal arrives.
    """
    global _resume_hint, _signals_reach_a_thread  # noqa: PLW0603  (a process exits once)
    if environment.rank() != 0:
        return
    _resume_hint = resume_hint
    signal.signal(signal.SIGTERM, _terminate)
    if not _signals_reach_a_thread:
        _signals_reach_a_thread = True
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_forget_signals)
        threading.Thread(target=_print_hint, args=(read,), name="resume hint", daemon=True).start()


def _print_hint(signals: int) -> None:
    """Print the hint when a signal arrives.

    The main thread would be too late where it is in a long call, such as one that waits for a file system to
    store a checkpoint: Python calls a signal's handler after that.
    """
    while signal.SIGTERM not in os.read(signals, 64):
        continue
    # Not through sys.stderr: the main thread may be writing to it.
    os.write(2, _interrupted("terminated by a signal").encode())
    _hint_printed.set()


def _terminate(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    _hint_printed.wait(_DELIVERY)
    time.sleep(_DELIVERY)
    os.kill(os.getpid(), number)


def _forget_signals() -> None:
    """Leave a child process, such as one that loads data, to die of a signal without a word."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupted(what: str) -> str:
    return f"trainer: {what}{'' if _resume_hint is None else f'; {_resume_hint()}'}\n"


def fail(error: BaseException) -> NoReturn:
    """Report an error and abort every rank of the run with its exit code.

    A `UserError` prints only its message and exits with 2; any other exception prints its traceback and exits
    with 1.
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
    """Return the text that a rank prints for an error."""
    if isinstance(error, (UserError, TrainingError)):
        return f"trainer: error: {'; '.join([str(error), *notes(error)])}\n"
    if isinstance(error, KeyboardInterrupt):
        return _interrupted("interrupted")
    text = "".join(traceback.format_exception(error))
    if sys.version_info < (3, 11):  # which does not print notes
        text += "".join(f"{note}\n" for note in notes(error))
    return f"{text}trainer: rank {rank} failed; aborting all ranks\n" if environment.launched() else text


def exit_code(error: BaseException) -> int:
    """Return the exit code of a run that fails with an error."""
    if isinstance(error, UserError):
        return EXIT_USER_ERROR
    return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _abort(code: int) -> NoReturn:
    """Abort all ranks at once: a neighbour that waits in a receive would otherwise wait forever."""
    if (mpi := _mpi()) is not None:
        mpi.COMM_WORLD.Abort(code)
    os._exit(code)


def _mpi() -> Any:
    """Return MPI, initialised, or None if it cannot be: MPI itself may be the failure."""
    try:
        return importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError):
        return None
