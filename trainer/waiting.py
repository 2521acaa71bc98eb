"""Waiting without spinning: look, sleep a little, look again; ranks often share cores."""

import time
from collections.abc import Callable

_SHORTEST = 50e-6  # seconds; the kernel's timer adds about as much again
_LONGEST = 1e-3
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
