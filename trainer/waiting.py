"""Waiting without spinning: look, sleep until the bell rings or a little has passed, look again."""

import time
from collections.abc import Callable, Iterable

from trainer import environment
from trainer.doorbell import Doorbell

# Where ranks share cores, waking up interrupts a neighbour that computes: look less often.
_RANKS_PER_CORE = max(1.0, environment.local_size() / environment.cores())
_SHORTEST = 50e-6 * _RANKS_PER_CORE  # seconds; the kernel's timer adds some 50 microseconds
_LONGEST = 1e-3 * _RANKS_PER_CORE
_SHARE = 0.02  # a sleep is at most this share of the time waited so far, so it delays little

# One question moves Open MPI's messages on by a part of the way only: with a single one after the bell, one
# message in two is found a sleep later.
_QUESTIONS = 3

_bells: list[Doorbell] = []  # this process's, once there is a world


def listen(bell: Doorbell) -> None:
    """Wake from waiting when this bell rings."""
    _bells[:] = [bell]


def ring(ranks: Iterable[int]) -> None:
    """Wake ranks of the world that wait for what has just been sent to them, where that is possible."""
    for bell in _bells:
        bell.ring(ranks)


def wait(ready: Callable[[], object]) -> float:
    """Return once `ready()` is true, with the seconds that it took.

    Asking counts as waiting: where ranks share cores, MPI may give the core away meanwhile.
    """
    start = time.perf_counter()
    if not ready():
        for bell in _bells:
            bell.forget()  # what it rang for before is nothing to wake up for; what rings from now on is
        while not any(ready() for _ in range(_QUESTIONS)):
            waited = time.perf_counter() - start
            _sleep(min(max(waited * _SHARE, _SHORTEST), _LONGEST))
    return time.perf_counter() - start


def _sleep(seconds: float) -> None:
    if _bells:
        _bells[0].sleep(seconds)
    else:
        time.sleep(seconds)
