"""Signals that ask a run to stop: the first asks it to save and stop, a second ends it at once.

Schedulers announce the end of a job by a signal, some time before they kill it. What a signal does:

    start-up   ends the run at once: there is nothing to save
    training   is noted; at the end of a step all ranks agree, save and stop (`trainer.train`)
    a second   ends the run at once
    the end    everything is saved: nothing

A signal's number is written to a pipe at once, which a thread reads: Python's handlers would be too late
where the main thread is in a long call, such as one that waits for a file system.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from enum import Enum

from trainer.distributed import environment
from trainer.distributed.failure import (
    DELIVERY,
    abort_from_thread,
    announce_end,
    print_at_once,
    set_resume_hint,
)
from trainer.distributed.heartbeat import heartbeat
from trainer.errors import EXIT_SAVED

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_HANDLED = (*SIGNALS, signal.SIGCONT)

# Signals that come together are handled together.
_TOGETHER = 0.05  # seconds
# One request may arrive several times: a scheduler signals the launcher, which forwards it, and the ranks.
_SAME_REQUEST = 0.7  # seconds
# When mpirun ends a job, a rank gets SIGCONT, after one second SIGTERM, and after another SIGKILL.
_AFTER_CONT = (0.5, 3.0)  # seconds from SIGCONT to SIGTERM
_BEFORE_KILL = 0.5  # seconds from SIGTERM until this rank says how to resume


class _Phase(Enum):
    START_UP = 1
    TRAINING = 2
    STOPPED = 3
    DONE = 4


class _Notice:
    """What this process has been asked, and how far its run is."""

    def __init__(self) -> None:
        self.phase = _Phase.START_UP
        self.signal = 0
        self.since = 0.0
        self.continued = 0.0
        self.hint: Callable[[], str] = lambda: "run again"

    def handle(self, numbers: set[int]) -> None:
        """Do what signals ask for that came together."""
        now = time.monotonic()
        shortest, longest = _AFTER_CONT
        by_mpirun = environment.launched_by_mpirun() and shortest < now - self.continued < longest
        if signal.SIGCONT in numbers:
            self.continued = now
        for number in sorted(numbers.intersection(SIGNALS)):  # a request to save first
            if self.phase is _Phase.START_UP:
                self._end_start_up(number, by_mpirun)
            elif self.phase is _Phase.STOPPED:
                if number == signal.SIGTERM:  # another rank has ended the run
                    heartbeat.leave()
                    os._exit(EXIT_SAVED)
            elif self.signal == 0:
                self.signal, self.since = number, now
                if by_mpirun and number == signal.SIGTERM and self.phase is _Phase.TRAINING:
                    threading.Timer(_BEFORE_KILL, self._announce).start()
            elif now - self.since > _SAME_REQUEST:
                _end(f"{name_of(number)}, a second signal, ends the run at once; {self.hint()}", 128 + number)

    def _end_start_up(self, number: int, by_mpirun: bool) -> None:
        if by_mpirun and number == signal.SIGTERM:
            heartbeat.leave()
            os._exit(128 + number)  # without a word: another rank has failed, and says why
        name = name_of(number)
        _end(f"{name} before there is anything to save: nothing is lost, run again", EXIT_SAVED)

    def _announce(self) -> None:
        """Print how to resume: another rank has failed, or mpirun itself was asked to end."""
        if self.phase is _Phase.TRAINING and environment.rank() == 0:
            announce_end(f"SIGTERM from mpirun, which ends the run; {self.hint()}")


_notice = _Notice()
_listening = False


def listen() -> None:
    """Handle signals from now on: until `begin_training`, one ends the command at once."""
    global _notice, _listening  # noqa: PLW0603  (a process has one set of handlers)
    _notice = _Notice()
    for number in _HANDLED:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _leave_to_thread)
    # horovodrun starts mpirun with SIGTERM blocked; Open MPI unblocks it for the ranks, MPICH does not.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    if not _listening:
        _listening = True
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_forget)
        threading.Thread(target=_read, args=(read,), name="signals", daemon=True).start()


def begin_training(resume_hint: Callable[[], str]) -> None:
    """Let a signal ask for a checkpoint from now on.

    Args:
        resume_hint: Returns how to resume the run, for a message; called in a thread.
    """
    set_resume_hint(resume_hint)
    _notice.hint = resume_hint
    _notice.phase = _Phase.TRAINING


def received() -> int:
    """Return the signal that asks this rank to stop, or 0."""
    return _notice.signal


def continued() -> float:
    """Return when mpirun began to end this rank, in seconds of the monotonic clock; 0 if it did not."""
    return _notice.continued


def name_of(number: int) -> str:
    """Return a signal's name, as whoever sent it knows it."""
    by_mpirun = environment.launched_by_mpirun() or environment.launched_by_hydra()
    if number == signal.SIGUSR1 and by_mpirun:
        return "SIGTERM or SIGUSR1"  # horovodrun passes on the one as the other
    return signal.Signals(number).name


def end_training(*, stopped: bool) -> None:
    """Let signals do nothing from now on: everything is saved.

    Args:
        stopped: Whether the run stopped early, and all ranks are about to exit with `EXIT_SAVED`.
    """
    _notice.phase = _Phase.STOPPED if stopped else _Phase.DONE


def stop_listening() -> None:
    """Let signals kill this process, which fails."""
    for number in SIGNALS:
        if signal.getsignal(number) is _leave_to_thread:
            signal.signal(number, signal.SIG_DFL)


def _read(signals: int) -> None:
    while True:
        numbers = set(os.read(signals, 64))
        if numbers.intersection(_HANDLED):
            time.sleep(_TOGETHER)
            while select.select([signals], [], [], 0)[0]:
                numbers.update(os.read(signals, 64))
            _notice.handle(numbers)


def _leave_to_thread(number: int, frame: object) -> None:
    """Do nothing: `_read` has the signal already."""


def _forget() -> None:
    """Leave a child process, such as one that loads data, to die of a signal without a word."""
    signal.set_wakeup_fd(-1)
    stop_listening()


def _end(text: str, code: int) -> None:
    """Print a line, once for all ranks of the node, and end the run."""
    with socket.socket(socket.AF_UNIX) as taken:
        if _speaks(taken):
            print_at_once(text)
        time.sleep(DELIVERY)
        abort_from_thread(code)


def _speaks(taken: socket.socket) -> bool:
    """Return whether this rank prints what all have to say: the first that takes a name in the kernel."""
    job = os.environ.get("PMIX_NAMESPACE")
    if job is None or sys.platform != "linux":
        return True
    try:
        taken.bind(f"\0trainer-{os.getuid()}-{job}")
    except OSError:
        return False
    return True
