"""What a rank does at this moment, in memory that the other ranks of its node can read.

A rank stores a few numbers at every action (`Word`), and whoever watches reads them: a rank that is stopped,
killed or stuck cannot answer any more, but its numbers stay. Until a `Page` is opened, they are this
process's own.
"""

import hashlib
import json
import mmap
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

from trainer.distributed import environment

try:
    import fcntl
except ImportError:  # pragma: no cover  (not on Windows, where nothing else of this runs either)
    fcntl = None  # type: ignore[assignment]

SLOT = 1024  # bytes of a rank: words, then a text
_TEXT = 256  # where the text starts
_PREFIX = "trainer-heartbeats-"


class Word(IntEnum):
    """The numbers of a rank, 8 bytes each."""

    STATE = 0
    PROCESS = 1
    RANK = 2
    PHASE = 3
    STEP = 4
    ACTION = 5  # as of `trainer.schedule.coding`; 0 for none
    RUNS = 6  # lists of actions that were started
    WAITS = 7  # for whom: a `Waits`
    JOINED = 8  # this and the next two: collective calls with all ranks, the pipeline, the replicas
    PEER = 11  # the rank that is waited for, with `Waits.RANK`
    SINCE = 12  # when the action or the phase began, in seconds of the monotonic clock: a double
    TICK = 13  # when this rank's watch last looked: a double
    STACK = 14  # the descriptor of its stack's file, plus 1
    PEAK = 15  # the most memory that it has had, in KiB
    DEBUGGED = 16  # whether a debugger holds it
    REPORTED = 17  # whether somebody has reported why the run ends: counts for all ranks of the node


class State(IntEnum):
    """Whether a process lives."""

    NONE = 0
    ALIVE = 1
    LEAVING = 2  # it ends on its own account, and has said why


class Phase(IntEnum):
    """What a rank does outside of actions."""

    START = 0
    MPI = 1
    LOAD = 2
    BUILD = 3
    RESTORE = 4
    READ = 5
    TRAIN = 6
    UPDATE = 7
    SAVE = 8
    VALIDATE = 9
    GENERATE = 10
    REPORT = 11
    IDLE = 12  # whatever a command does beside the schedule, such as read what a person types


class Waits(IntEnum):
    """For whom a rank waits, where its action does not say."""

    NOBODY = 0
    WORLD = 1
    PIPELINE = 2
    REPLICAS = 3
    RANK = 4
    SENDS = 5  # until what it has sent is received


class Heartbeat:
    """What this rank does.

    Attributes:
        words: The numbers, by `Word`.
        times: The same memory as seconds, for those that are times.
    """

    def __init__(self) -> None:
        self.detach()

    def use(self, slot: memoryview) -> None:
        """Write into this memory from now on."""
        self._slot = slot
        self.words = slot[:_TEXT].cast("q")
        self.times = slot[:_TEXT].cast("d")

    def detach(self) -> None:
        """Write into memory of this process's own: it is no rank, but a fork of one."""
        self.use(memoryview(bytearray(SLOT)))

    def enter(self, phase: Phase) -> None:
        """Note that a phase begins."""
        words = self.words
        words[Word.ACTION], words[Word.PHASE] = 0, phase
        self.times[Word.SINCE] = time.monotonic()

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Note a phase, and after it the one before; what fails leaves it, for those who look for why."""
        before = self.words[Word.PHASE]
        self.enter(phase)
        yield
        self.enter(Phase(before))

    def join(self, group: Waits) -> None:
        """Note that this rank waits for a group, all of which call this."""
        words = self.words
        if group <= Waits.REPLICAS:
            words[Word.JOINED + group - 1] += 1
        words[Word.WAITS] = group

    def wait_for(self, rank: int) -> None:
        """Note that this rank waits for another."""
        self.words[Word.PEER] = rank
        self.words[Word.WAITS] = Waits.RANK

    def go_on(self) -> None:
        """Note that the wait is over."""
        self.words[Word.WAITS] = Waits.NOBODY

    def begin_group(self, group: Waits) -> None:
        """Count the calls of a group from 0."""
        self.words[Word.JOINED + group - 1] = 0

    def leave(self) -> None:
        """Note that this process ends on its own account."""
        self.words[Word.STATE] = State.LEAVING

    @property
    def text(self) -> dict[str, Any]:
        """Return the text that goes with the numbers."""
        return text_of(self._slot)

    def describe(self, **facts: Any) -> None:
        """Add to the text that goes with the numbers."""
        text = {**self.text, **facts}
        data = json.dumps(text).encode()
        while len(data) >= SLOT - _TEXT and text:  # the longest goes
            del text[max(text, key=lambda name: len(str(text[name])))]
            data = json.dumps(text).encode()
        self._slot[_TEXT:] = data.ljust(SLOT - _TEXT, b"\0")


def text_of(slot: memoryview) -> dict[str, Any]:
    """Return the text of a slot; empty while it is written."""
    try:
        text = json.loads(bytes(slot[_TEXT:]).rstrip(b"\0"))
    except ValueError:
        return {}
    return text if isinstance(text, dict) else {}


heartbeat = Heartbeat()


class Page:
    """The slots of all ranks of a node, in one file that they map.

    The last rank that arrives removes the file's name, so nothing is left however the ranks end. Those that
    end before all have arrived leave it, and the next run of the same user removes it: the file of a living
    rank is locked.

    Args:
        job: A name that the ranks of the node share, and no others.
        ranks: How many they are.
        folder: Where the file goes, if there are several.
    """

    def __init__(self, job: str, ranks: int, folder: Path) -> None:
        self.slots = ranks
        self._file = -1
        if ranks == 1 or fcntl is None:
            self._memory, self.own = mmap.mmap(-1, SLOT), 0
            self.slots = 1
            return
        self._path = folder / f"{_PREFIX}{os.getuid()}-{job}"
        _sweep(folder)
        self._file = _open_locked(self._path)
        fcntl.lockf(self._file, fcntl.LOCK_EX, 8, 0)
        try:
            os.ftruncate(self._file, SLOT * (1 + ranks))  # the first slot counts
            self._memory = mmap.mmap(self._file, SLOT * (1 + ranks))
            arrived = memoryview(self._memory)[:8].cast("q")
            self.own = arrived[0] % ranks
            arrived[0] += 1
            if arrived[0] == ranks:
                self._path.unlink(missing_ok=True)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 8, 0)

    def slot(self, number: int) -> memoryview:
        """Return the memory of a rank, in the order of arrival."""
        start = 0 if self._file < 0 else SLOT * (1 + number)
        return memoryview(self._memory)[start : start + SLOT]

    def words(self, number: int) -> memoryview:
        """Return the numbers of a rank."""
        return self.slot(number)[:_TEXT].cast("q")

    def times(self, number: int) -> "memoryview[float]":
        """Return the same numbers as seconds."""
        return self.slot(number)[:_TEXT].cast("d")


def open_page() -> Page:
    """Return the page of this node, with this rank's heartbeat in it."""
    ranks = environment.local_size()
    shared = Path("/dev/shm")
    folder = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    try:
        page = Page(job_name(), ranks, folder)
    except OSError:  # no room: this rank alone
        page = Page("", 1, folder)
    heartbeat.use(page.slot(page.own))
    words = heartbeat.words
    words[Word.PROCESS], words[Word.RANK] = os.getpid(), environment.rank()
    heartbeat.enter(Phase.START)
    words[Word.STATE] = State.ALIVE
    return page


def job_name(variables: Mapping[str, str] = os.environ) -> str:
    """Return what the ranks that one launcher has started on this node share, in one space of processes."""
    servers = [value for name, value in sorted(variables.items()) if name.startswith("PMIX_SERVER_URI")]
    namespace = variables.get("PMIX_NAMESPACE")
    facts = [namespace, *servers] if namespace else [os.getppid()]
    own = Path("/proc/self/ns/pid")
    processes = own.stat().st_ino if own.exists() else 0
    return hashlib.sha256(json.dumps([os.getuid(), processes, facts]).encode()).hexdigest()[:16]


def _open_locked(path: Path) -> int:
    """Open a file, create it if there is none, and lock it for as long as this process lives."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_SH)
        try:
            if path.stat().st_ino == os.fstat(file).st_ino:
                return file
        except FileNotFoundError:
            pass
        os.close(file)  # somebody has swept it away in between


def _sweep(folder: Path) -> None:
    """Remove the files of this user's ranks that are no more."""
    for path in folder.glob(f"{_PREFIX}{os.getuid()}-*"):
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except OSError:
            continue  # its ranks live
        finally:
            os.close(file)
