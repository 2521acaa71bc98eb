"""Waiting without spinning: look, sleep a little, look again; ranks often share cores."""

import time
from collections.abc import Callable

from trainer import environment

# Where ranks share cores, waking up interrupts a neighbour that computes: look less often.
_RANKS_PER_CORE = max(1.0, environment.local_size() / environment.cores())
_SHORTEST = 50e-6 * _RANKS_PER_CORE  # seconds; the kernel's timer adds some 50 microseconds
_LONGEST = 1e-3 * _RANKS_PER_CORE
_SHARE = 0.02  # a sleep is at most this share of the time waited so far, so it delays little


def wait(ready: Callable[[], object]) -> float:
    """Return once `ready()` is true, with the seconds waited (0.0 where it was true at once)."""
    if ready():
        return 0.0
    start = time.perf_counter()
    waited = 0.0
    while not ready():
        time.sleep(min(max(waited * _SHARE, _SHORTEST), _LONGEST))
        waited = time.perf_counter() - start
    return waited
