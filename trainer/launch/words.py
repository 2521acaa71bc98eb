"""Open MPI's own words on the end of a job, in one line of ours; what else comes passes byte for byte, at once.

Open MPI puts each of its messages between two dashed lines:

    --------------------------------------------------------------------------
    mpirun noticed that process rank 1 with PID 462 on node h2 exited on signal 9 (Killed).
    --------------------------------------------------------------------------

A line that begins with dashes is held back until it is clear whether it is one of these. A block is held back
until its second dashed line; if that does not come within a second, the block was something else's.
"""

import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

_DASHES = b"-" * 74
_PATIENCE = 1.0  # seconds
_LONGEST = 1 << 14  # bytes of a block


class Means(Enum):
    """What a message of Open MPI's means for the job."""

    NOTHING = "nothing that others do not say better"
    RANK = "a rank ended the job"
    HOST = "a host is lost, or never joined"
    START = "the ranks did not start"


@dataclass(frozen=True)
class Word:
    """What a message says.

    Attributes:
        means: For the job.
        text: In one line; empty where ours are enough.
        code: The exit code of the rank that it names.
    """

    means: Means
    text: str = ""
    code: int | None = None


def explain(block: str) -> Word | None:
    """Return what one of Open MPI's messages says, or None if it is not known, and passes as it is."""
    for pattern, build in _KNOWN:
        if (found := re.search(pattern, block, re.DOTALL)) is not None:
            return build(found)
    return None


def _signalled(found: re.Match[str]) -> Word:
    number = int(found["signal"])
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    text = f"rank {found['rank']} on host {found['host']} was killed by {name}"
    if number == signal.SIGKILL:
        text += ": someone killed it, or the kernel for want of memory (`dmesg` on that host says so)"
    elif number == signal.SIGBUS:
        text += ": a file that it had mapped has changed, or its file system is full"
    return Word(Means.RANK, text, 128 + number)


def _improper(found: re.Match[str]) -> Word:
    return Word(
        Means.RANK,
        f"rank {found['rank']} on host {found['host']} ended without saying why, by exit() or os._exit(), while "
        "others went on",
    )


def _silent(_found: re.Match[str]) -> Word:
    return Word(Means.NOTHING)


def _returned(found: re.Match[str]) -> Word:
    return Word(Means.NOTHING, code=int(found["code"]))


def _lost(found: re.Match[str]) -> Word:
    return Word(
        Means.HOST,
        f"host {found['host']} is lost: its network or the host itself failed; the job ends, and goes on from "
        "its newest checkpoint when it is started again",
    )


def _no_daemon(_found: re.Match[str]) -> Word:
    return Word(
        Means.HOST,
        "a host is lost, or Open MPI's daemon did not start there: its connection broke; the job ends, and goes "
        "on from its newest checkpoint, if there is one, when it is started again",
    )


def _slots(found: re.Match[str]) -> Word:
    return Word(
        Means.START,
        f"the hosts have fewer than {found['slots']} slots: give slots with -H h1:2,h2:2, or fewer ranks with -np",
    )


def _program(found: re.Match[str]) -> Word:
    return Word(
        Means.START,
        f"host {found['host']} cannot run {found['program'].strip()}: install the same environment at the same "
        "path on every host",
    )


def _folder(found: re.Match[str]) -> Word:
    return Word(
        Means.START,
        f"host {found['host']} has no folder {found['folder'].strip()}: start from a folder that all hosts have",
    )


_KNOWN: Sequence[tuple[str, Callable[[re.Match[str]], Word]]] = (
    (
        r"process rank (?P<rank>\d+) with PID \d+ on node (?P<host>\S+) exited on\s+signal (?P<signal>\d+)",
        _signalled,
    ),
    (r"process rank (?P<rank>\d+) with PID \d+ on\s+node (?P<host>\S+) exiting improperly", _improper),
    (r"exited with non-zero status.*Exit code:\s+(?P<code>\d+)", _returned),
    (r"^\s*Primary job +terminated normally, but", _silent),
    (r"^\s*MPI_ABORT was invoked on rank", _silent),
    (r"lost communication with a remote daemon.*Remote daemon:[^\n]* on node (?P<host>\S+)", _lost),
    (r"ORTE was unable to reliably start one or more daemons", _no_daemon),
    (r"An ORTE daemon has unexpectedly failed", _no_daemon),
    (r"not enough slots available in the system to satisfy the (?P<slots>\d+)", _slots),
    (
        r"could not access\s+or execute an executable:\s+Executable: (?P<program>[^\n]*)\nNode: (?P<host>\S+)",
        _program,
    ),
    (
        r"change to the specified working directory:\s+Working directory: (?P<folder>[^\n]*)\nNode: (?P<host>\S+)",
        _folder,
    ),
)


class Filter:
    """Takes what mpirun writes to its standard error, and gives what the user shall see.

    Args:
        show: Called with bytes to pass on.
        heard: Called with each message of Open MPI's that is known, and its text.
        clock: Returns seconds.
    """

    def __init__(
        self,
        show: Callable[[bytes], None],
        heard: Callable[[Word, bytes], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._show = show
        self._heard = heard
        self._clock = clock
        self._held = b""
        self._since = 0.0
        self._at_start = True  # of a line

    @property
    def patience(self) -> float | None:
        """Return after how many seconds without anything new `expire` shall be called; None: never."""
        return max(0.0, self._since + _PATIENCE - self._clock()) if self._held else None

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        if not self._held:
            self._since = self._clock()
        self._held += data
        while self._held and self._step():
            pass

    def expire(self) -> None:
        """Pass on what was held back in vain."""
        if self._held and self._clock() - self._since >= _PATIENCE:
            self.flush()

    def flush(self) -> None:
        """Pass on everything."""
        self._pass(len(self._held))

    def _step(self) -> bool:
        """Handle what is held back up to the next line or block; return whether there may be more."""
        held = self._held
        if not self._at_start:
            end = held.find(b"\n")
            self._pass(end + 1 if end >= 0 else len(held))
            return True
        opening = _DASHES + b"\n"
        if not held.startswith(opening):
            if opening.startswith(held):
                return False  # it may become a dashed line
            self._pass(max(1, held.find(b"\n") + 1) if b"\n" in held else len(held))
            return True
        close = held.find(b"\n" + opening, len(_DASHES))
        if close < 0:
            if len(held) > _LONGEST:
                self._pass(len(opening))
                return True
            return False
        end = close + 1 + len(opening)
        word = explain(held[len(opening) : close + 1].decode(errors="replace"))
        if word is None:
            self._pass(end)
        else:
            self._heard(word, held[:end])
            self._drop(end)
        return True

    def _pass(self, size: int) -> None:
        if size:
            self._show(self._held[:size])
            self._at_start = self._held[:size].endswith((b"\n", b"\r"))
            self._drop(size)

    def _drop(self, size: int) -> None:
        self._held = self._held[size:]
        self._since = self._clock()
