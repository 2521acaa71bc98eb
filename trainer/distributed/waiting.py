"""Waiting without spinning: look, sleep until the bell rings or a little has passed, look again."""

import time
from collections.abc import Callable, Iterable

from trainer.distributed import environment
from trainer.distributed.wakeup import WakeupSocket

# Where ranks share cores, waking up interrupts a neighbour that computes: look less often.
_RANKS_PER_CORE = max(1.0, environment.local_size() / environment.cores())
_SHORTEST = 50e-6 * _RANKS_PER_CORE  # seconds; the kernel's timer adds some 50 microseconds
_LONGEST = 1e-3 * _RANKS_PER_CORE
_SHARE = 0.02  # a sleep is at most this share of the time waited so far, so it delays little
# Where a bell will ring it is enough to look seldom, unless it has just rung, and the rest is on its way.
_SELDOM = 2e-3 * _RANKS_PER_CORE
_ALERT = 0.5e-3 * _RANKS_PER_CORE

# One question moves Open MPI's messages on by a part of the way only: with a single one after the bell, one
# message in two is found a sleep later.
_QUESTIONS = 3

_bells: list[WakeupSocket] = []  # this process's, once there is a world


def listen(bell: WakeupSocket) -> None:
    """Wake from waiting when this bell rings."""
    _bells[:] = [bell]


def hears(rank: int) -> bool:
    """Return whether a rank of the world can wake this one."""
    return any(bell.hears(rank) for bell in _bells)


def ring(ranks: Iterable[int]) -> None:
    """Wake ranks of the world that wait for what has just been sent to them, where that is possible."""
    for bell in _bells:
        bell.ring(ranks)


class WaitMeter:
    """The seconds that this rank has waited for others, added up.

    Whatever waits is given a meter, so that a step can read one number however many parts waited in it.

    Attributes:
        seconds: The total so far.
    """

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = 0.0

    def wait(self, ready: Callable[[], object], *, rings: bool = False) -> None:
        """Return once `ready()` is true, and add the seconds that it took; arguments as of `wait`."""
        self.seconds += wait(ready, rings=rings)


def wait(ready: Callable[[], object], *, rings: bool = False) -> float:
    """Return once `ready()` is true, with the seconds that it took.

    Asking counts as waiting: where ranks share cores, MPI may give the core away meanwhile.

    Args:
        ready: Looks.
        rings: Whether whoever makes it true rings this process's bell then.
    """
    start = time.perf_counter()
    if not ready():
        # A bell that rang before may have been that of a message of which a part is still to come.
        rang = any(bell.forget() for bell in _bells)
        since, patient = start, rings and not rang
        while not any(ready() for _ in range(_QUESTIONS)):
            waited = time.perf_counter() - since
            patient = patient or (rings and waited > _ALERT)
            if _sleep(_SELDOM if patient else min(max(waited * _SHARE, _SHORTEST), _LONGEST)):
                since, patient = time.perf_counter(), False
    return time.perf_counter() - start


def _sleep(seconds: float) -> bool:
    """Return when the bell rings, or after so many seconds; whether it rang."""
    if _bells:
        return _bells[0].sleep(seconds)
    time.sleep(seconds)
    return False
