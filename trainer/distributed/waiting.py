"""Waiting without spinning: poll, sleep until woken or for a short time, poll again."""

import time
from collections.abc import Callable, Iterable

from trainer.distributed import environment
from trainer.distributed.wakeup import WakeupSocket

# Where ranks share cores, every poll interrupts a neighbour that computes: poll less often.
_RANKS_PER_CORE = max(1.0, environment.local_size() / environment.cores())
_SHORTEST = 50e-6 * _RANKS_PER_CORE  # seconds; the kernel's timer adds some 50 microseconds
_LONGEST = 1e-3 * _RANKS_PER_CORE
_SHARE = 0.02  # a sleep is at most this share of the time waited so far, so it adds little latency
# Where a wake-up is expected, long sleeps suffice, unless one has just come and the rest is on its way.
_LONG_SLEEP = 2e-3 * _RANKS_PER_CORE
_ALERT = 0.5e-3 * _RANKS_PER_CORE  # how long sleeps stay short after a wake-up

# One poll advances Open MPI's messages only part of the way: with one poll after each wake-up, every second
# message is found one sleep late.
_POLLS = 3

_sockets: list[WakeupSocket] = []  # this process's, once there is a world


def use_wakeup_socket(wakeup_socket: WakeupSocket) -> None:
    """Let this socket wake the process when it waits."""
    _sockets[:] = [wakeup_socket]


def can_be_woken_by(rank: int) -> bool:
    """Return whether a rank of the world can wake this one."""
    return any(each.can_be_woken_by(rank) for each in _sockets)


def wake(ranks: Iterable[int]) -> None:
    """Wake those ranks of the world that this one can wake; they may wait for what it has just sent."""
    for each in _sockets:
        each.wake(ranks)


class WaitMeter:
    """The total seconds that this rank has waited for others.

    Everything that waits is given the meter, so that a step reads one number however many parts waited.

    Attributes:
        seconds: The total so far.
    """

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = 0.0

    def wait(self, ready: Callable[[], object], *, expects_wakeup: bool = False) -> None:
        """Return once `ready()` is true, and add the seconds that it took; arguments as of `wait`."""
        self.seconds += wait(ready, expects_wakeup=expects_wakeup)


def wait(ready: Callable[[], object], *, expects_wakeup: bool = False) -> float:
    """Return once `ready()` is true, with the seconds that it took.

    Polling counts as waiting: where ranks share cores, MPI may yield the core meanwhile.

    Args:
        ready: Polls for what this rank waits for.
        expects_wakeup: Whether the rank that makes `ready()` true then wakes this one.
    """
    start = time.perf_counter()
    if not ready():
        # An earlier wake-up may belong to a message that has arrived only in part.
        woken = any(each.drain() for each in _sockets)
        since, patient = start, expects_wakeup and not woken
        while not any(ready() for _ in range(_POLLS)):
            waited = time.perf_counter() - since
            patient = patient or (expects_wakeup and waited > _ALERT)
            if _sleep(_LONG_SLEEP if patient else min(max(waited * _SHARE, _SHORTEST), _LONGEST)):
                since, patient = time.perf_counter(), False
    return time.perf_counter() - start


def _sleep(seconds: float) -> bool:
    """Sleep until woken, or for `seconds`; return whether this rank was woken."""
    if _sockets:
        return _sockets[0].sleep(seconds)
    time.sleep(seconds)
    return False
