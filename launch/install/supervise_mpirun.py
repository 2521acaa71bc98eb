"""Runs mpirun for `horovodrun`, and passes signals on so that the ranks get the time to save.

Part of the patch of Horovod: `launch/install/runner_patch.py` adds this file to the installed package as it
is, so it needs the standard library alone. Open MPI 4.1 kills the ranks two seconds after a SIGTERM to
mpirun, but passes a SIGUSR1 on to them and leaves them alone. So does MPICH, but a SIGUSR2 ends it:

    to horovodrun, or its process group     to mpirun    the ranks
    SIGTERM, SIGUSR1, SIGUSR2, SIGHUP       SIGUSR1      get SIGUSR1
    SIGINT (Ctrl-C), SIGQUIT                SIGINT       are terminated
    SIGKILL                                 SIGINT       are terminated

mpirun has a process group of its own, so a signal to horovodrun's group reaches it once. Its SIGTERM is
blocked, for schedulers such as Slurm signal every process of a job.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

_RUN_AGAIN = 75  # as the trainer's `EXIT_SAVED`
_TO_SAVE = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PASSED_ON = {
    signal.SIGTERM: signal.SIGUSR1,
    signal.SIGHUP: signal.SIGUSR1,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGUSR2: signal.SIGUSR1,
    signal.SIGINT: signal.SIGINT,
    signal.SIGQUIT: signal.SIGINT,
}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_at_once_before_ranks_start() -> None:
    """Let a signal end `horovodrun` with one line while it looks for hosts, as there is nothing to save."""

    def end(number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        os.write(2, f"horovodrun: {name} before the ranks started: nothing is lost, run again\n".encode())
        os._exit(_RUN_AGAIN)

    for number in _TO_SAVE:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, end)


def supervise(command: str, env: Mapping[str, str]) -> NoReturn:
    """Run a shell command that starts mpirun, and exit with its exit code."""
    signals, write = os.pipe()
    os.set_blocking(signals, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in [signal.SIGCHLD, *_PASSED_ON]:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda *_: None)
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    # The prctl is a system call, the only thing that is done between fork and exec.
    mpirun = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"],
        env=dict(env),
        preexec_fn=_start_in_background(ctypes.CDLL(None)),  # noqa: PLW1509
    )
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    while mpirun.poll() is None:
        select.select([signals], [], [], 1.0)
        for received in _received(signals):
            if received in _PASSED_ON:
                mpirun.send_signal(_PASSED_ON[signal.Signals(received)])
    code = mpirun.returncode
    os._exit(code if code >= 0 else 128 - code)


def _start_in_background(library: ctypes.CDLL) -> Callable[[], None]:
    """Return what mpirun does before it starts: leave horovodrun's process group, and end with horovodrun."""
    prctl = getattr(library, "prctl", None)  # Linux only

    def start() -> None:
        os.setpgid(0, 0)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGINT)

    return start


def _received(signals: int) -> bytes:
    """Return the numbers of the signals that have come since the last call."""
    try:
        return os.read(signals, 64)
    except BlockingIOError:
        return b""
