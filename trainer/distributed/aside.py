"""Work in a process aside: a fork of this one, so that whatever the work touches stays untouched here.

Only a process of its own isolates everything that code may hold: caches, modules, class attributes, globals,
random generators. A fork starts in milliseconds and has all objects; a fresh process would import torch
again, and could not receive what is defined in a shell, a notebook or a closure.

A fork is safe here if the work keeps to the thread that it is in: it must not use MPI, Horovod, a GPU that
this process has initialised, or several threads (OpenMP's would wait for threads that a fork does not have).
Tried with MPI between ranks of a node, and on a GPU that this process had used before, or not.
Locks that other threads held stay locked for ever, so a process that is silent for too long is ended.
"""

import ctypes
import gc
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from typing import Any

import torch

from trainer.errors import UserError

Send = Callable[[Any], None]
_NO_AUTOGRAD = "no autograd"
_UNDISTURBED = 1.0  # seconds, in which a process forks, however large


@dataclass
class Outcome:
    """What came of work.

    Attributes:
        sent: What it sent, in order.
        died: How its process ended before the work did; None if it did not.
    """

    sent: list[Any] = field(default_factory=list)
    died: str | None = None


def run_aside(work: Callable[[Send], None], patience: float) -> Outcome:
    """Run work in a fork of this process.

    Args:
        work: Called there, with a function that sends a value here.
        patience: The seconds after which its process is ended if it sends nothing.

    Raises:
        UserError: The operating system refuses to fork this process.
        BaseException: What the work raised; its traceback there is the cause.
    """
    outcome = _run_in(os.fork, work, patience)
    return outcome if outcome is not None else _run_in(_fork_without_handlers, work, patience) or Outcome()


def _run_in(fork: Callable[[], int], work: Callable[[Send], None], patience: float) -> Outcome | None:
    """Run work in a fork; return None if autograd refuses to run there."""
    sys.stdout.flush()
    sys.stderr.flush()
    receiver, sender = Pipe(duplex=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on: other threads' locks
            child = fork()
    except OSError as error:
        raise UserError(
            f"this process cannot be forked to look at the model's layers ({error}): allow it more processes "
            "(ulimit -u), or memory to be overcommitted (sysctl vm.overcommit_memory)"
        ) from error
    if child == 0:
        receiver.close()
        _be_aside(work, sender, patience, must=fork is not os.fork)
    sender.close()
    with receiver:
        try:
            outcome, end = _receive(receiver)
        except BaseException:  # this process was interrupted
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
    status = os.waitpid(child, 0)[1]
    if isinstance(end, tuple):
        raise end[0] from RemoteError(end[1])
    if outcome.died is not None:
        outcome.died = _death(status, patience)
    return None if end == _NO_AUTOGRAD else outcome


def _fork_without_handlers() -> int:
    """Fork without the handlers that libraries have registered for it.

    Torch's, which is there once a process that sees a GPU has run a backward, keeps autograd from running in
    the fork, because threads that serve GPUs are missing. On the meta device and the CPU, none is needed.
    """
    libc = ctypes.PyDLL(None, use_errno=True)
    if not hasattr(libc, "_Fork"):  # before glibc 2.34
        return os.fork()
    with _keeping_the_interpreter():
        ctypes.pythonapi.PyOS_BeforeFork()
        child: int = libc._Fork()
        if child == 0:
            ctypes.pythonapi.PyOS_AfterFork_Child()
        else:
            ctypes.pythonapi.PyOS_AfterFork_Parent()
    if child < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return child


@contextmanager
def _keeping_the_interpreter() -> Iterator[None]:
    """Keep other threads from asking for the interpreter's lock.

    They ask when they have waited for an interval. A fork that had been asked to hand it over would wait for
    ever for a thread that it does not have, unless `PyOS_AfterFork_Child` came first.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_UNDISTURBED)
    try:
        time.sleep(2 * interval)  # threads that had begun to wait get it meanwhile
        yield
    finally:
        sys.setswitchinterval(interval)


def _autograd_runs() -> bool:
    try:
        torch.ones((), requires_grad=True).backward()  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    return True


def _receive(receiver: Connection) -> tuple[Outcome, Any]:
    """Return what the work sent; and what it raised with its traceback, or `_NO_AUTOGRAD`, or None."""
    outcome = Outcome()
    try:
        while True:
            kind, value = receiver.recv()
            if kind == "ended":
                return outcome, value
            outcome.sent.append(value)
    except EOFError:
        outcome.died = ""
    return outcome, None


def _death(status: int, patience: float) -> str:
    """Return how a process ended, in words."""
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGALRM:
        return f"it took longer than {patience:g} s"
    return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"


def _be_aside(work: Callable[[Send], None], sender: Connection, patience: float, *, must: bool) -> None:
    """Do the work as the forked process, and exit without what was registered for the exit."""
    status = 1
    try:
        _leave_ranks(patience)

        def send(value: Any) -> None:
            sender.send(("sent", value))
            signal.setitimer(signal.ITIMER_REAL, patience)

        end: Any = None
        try:
            if must or _autograd_runs():
                work(send)
            else:
                end = _NO_AUTOGRAD
        except BaseException as error:
            end = portable(error)
        sys.stdout.flush()
        sys.stderr.flush()
        sender.send(("ended", end))
        status = 0
    finally:
        os._exit(status)


def _leave_ranks(patience: float) -> None:
    """Give up what belongs to the process that was forked: its signals, its threads, its garbage."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.setitimer(signal.ITIMER_REAL, patience)  # the kernel ends it, whatever it is busy with
    gc.disable()  # a collection would copy the memory that both processes still share
    warnings.simplefilter("ignore")  # the real work will give them again
    torch.set_num_threads(1)


def portable(error: BaseException) -> tuple[BaseException, str]:
    """Return an exception that can be sent, and its traceback."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a custom exception does
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return error, text


class RemoteError(Exception):
    """The traceback of an exception in a process aside."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"
