"""Runs mpirun as a child: passes signals on, ends what does not end, and leaves nothing on any host.

    to the launcher, or its process group     to mpirun    the ranks
    SIGTERM, SIGUSR1, SIGUSR2, SIGHUP         SIGUSR1      save at the end of the step, and exit with 75
    a second of them                          SIGUSR1      end at once
    SIGINT (Ctrl-C), SIGQUIT                  SIGINT       are terminated
    SIGKILL                                   SIGINT       are terminated

mpirun would kill the ranks two seconds after a SIGTERM, so it gets that one blocked, as batch systems signal
every process of a job. What does not end in time is killed, by the mark that all of the job's processes bear.
"""

import ctypes
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from trainer.errors import EXIT_SAVED
from trainer.launch.children import ranks_of
from trainer.launch.stderr_filter import Filter
from trainer.launch.sweep import sweep
from trainer.launch.words import Means, Word

NOTICES = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
INTERRUPTS = (signal.SIGINT, signal.SIGQUIT)
_SAME_REQUEST = 0.7  # seconds; as in the ranks: a batch system may send one request twice
_TO_END = 10.0  # seconds for mpirun to end once the job has, or was ended
_LAST_WORDS = 2.0  # seconds for its standard error to close once it has ended
_POLL = 1.0  # seconds
_KILLED, _INTERRUPTED = 137, 130
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass
class Ended:
    """How a job ended.

    Attributes:
        code: The exit code, as a shell reports it.
        asked: Whether this process was signalled.
        words: What Open MPI said of it.
    """

    code: int
    asked: bool = False
    words: list[Word] = field(default_factory=list)


class Supervisor:
    """One start of mpirun.

    Args:
        command: What to run.
        variables: To be added to its environment.
        signals: What `listen` returns.
        mark: What the job's processes bear.
        grace: Seconds from a request to stop until the ranks are killed.
        say: Prints a line.
        hide: Called with Open MPI's own words where ours stand for them.
        elsewhere: Returns whether ranks run on other hosts, as far as these can be reached.
    """

    def __init__(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        signals: int,
        *,
        mark: str,
        grace: float,
        say: Callable[[str], None],
        hide: Callable[[bytes], None],
        elsewhere: Callable[[], bool] = lambda: False,
    ) -> None:
        self._command = command
        self._variables = variables
        self._signals = signals
        self._mark = mark
        self._grace = grace
        self._say = say
        self._hide = hide
        self._elsewhere = elsewhere
        self._deadline = float("inf")
        self._why = ""
        self._noticed = self._gone = 0.0
        self._interrupted = self._killed = self._had_ranks = False
        self._words: list[Word] = []

    def run(self) -> Ended:
        """Run the command to its end."""
        mpirun, errors = self._start()
        pump = threading.Thread(target=self._pump, args=(errors,), name="words", daemon=True)
        pump.start()
        while mpirun.poll() is None:
            left = max(0.0, self._deadline - time.monotonic())
            select.select([self._signals], [], [], min(_POLL, left))
            for number in received(self._signals):
                self._handle(signal.Signals(number), mpirun)
            self._watch(mpirun.pid)
            if time.monotonic() > self._deadline:
                self._kill()
        if self._killed:
            mpirun.wait()
        pump.join(_LAST_WORDS)
        return Ended(self._code(mpirun.returncode), bool(self._noticed) or self._interrupted, self._words)

    def _start(self) -> tuple["subprocess.Popen[bytes]", int]:
        read, write = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        # The prctl is a system call, the only thing that is done between fork and exec.
        mpirun = subprocess.Popen(
            self._command,
            env={**os.environ, **self._variables},
            stderr=write,
            preexec_fn=_in_background(ctypes.CDLL(None)),  # noqa: PLW1509
        )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.close(write)
        return mpirun, read

    def _handle(self, number: signal.Signals, mpirun: "subprocess.Popen[bytes]") -> None:
        now = time.monotonic()
        if number in INTERRUPTS:
            if self._interrupted:
                self._set(now, f"{number.name}, a second time")
            else:
                self._interrupted = True
                mpirun.send_signal(signal.SIGINT)
                self._set(now + _TO_END, f"{number.name} {_TO_END:g} s ago")
        elif number in NOTICES:
            mpirun.send_signal(signal.SIGUSR1)
            if not self._noticed:
                self._noticed = now
                self._set(now + self._grace, f"{number.name} {self._grace:g} s ago (--grace)")
            elif now - self._noticed > _SAME_REQUEST:
                self._set(now + _TO_END, f"{number.name}, a second signal, {_TO_END:g} s ago")

    def _set(self, deadline: float, why: str) -> None:
        """End the job at a time, unless it is to end before."""
        if deadline < self._deadline:
            self._deadline, self._why = deadline, why

    def _watch(self, mpirun: int) -> None:
        """Notice that mpirun has nothing left to wait for."""
        if any(word.means in (Means.HOST, Means.RANK) for word in self._words):
            self._set(time.monotonic() + _TO_END, f"mpirun said {_TO_END:g} s ago that the job ends")
            return
        if ranks_of(mpirun):
            self._had_ranks, self._gone = True, 0.0
        elif self._had_ranks:
            self._gone = self._gone or time.monotonic()
            if time.monotonic() - self._gone > _TO_END:
                if self._elsewhere():
                    self._gone = time.monotonic()  # they may take their time
                else:
                    self._set(time.monotonic(), f"all ranks ended {_TO_END:g} s ago")

    def _kill(self) -> None:
        self._killed = True
        self._deadline = float("inf")
        left = sweep(self._mark, 0.0)
        self._say(f"{self._why}, and the job still ran: killed what it had on this host ({len(left)})")

    def _code(self, returned: int) -> int:
        if self._interrupted:
            return _INTERRUPTED
        if returned == -signal.SIGUSR1:  # it had not got as far as to catch it
            self._say("asked to stop before the ranks started: nothing is lost, run again")
            return EXIT_SAVED
        known = [word.code for word in self._words if word.code is not None]
        if self._killed:
            return known[0] if known else _KILLED if self._noticed else 1
        return returned if returned >= 0 else 128 - returned

    def _pump(self, errors: int) -> None:
        """Pass on what mpirun writes to its standard error."""
        words = Filter(_show, self._hear)
        while True:
            ready, _, _ = select.select([errors], [], [], words.patience)
            if not ready:
                words.expire()
                continue
            data = os.read(errors, 1 << 16)
            if not data:
                break
            words.feed(data)
        words.flush()
        os.close(errors)

    def _hear(self, word: Word, text: bytes) -> None:
        self._words.append(word)
        self._hide(text)
        if word.text:
            self._say(word.text)


def _show(data: bytes) -> None:
    while data:
        try:
            data = data[os.write(2, data) :]
        except BlockingIOError:
            select.select([], [2], [])
        except OSError:  # nobody reads it
            return


def listen() -> int:
    """Have the numbers of signals to this process written to a pipe, and return its end."""
    signals, write = os.pipe()
    os.set_blocking(signals, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *NOTICES, *INTERRUPTS):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda *_: None)
    return signals


def _in_background(library: ctypes.CDLL) -> Callable[[], None]:
    """Return what mpirun does before it starts: leave this process group, and end with this process."""
    prctl = getattr(library, "prctl", None)  # Linux only

    def start() -> None:
        os.setpgid(0, 0)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGINT)

    return start


def received(signals: int) -> bytes:
    """Return the numbers of the signals that have come since the last call."""
    try:
        return os.read(signals, 64)
    except BlockingIOError:
        return b""
