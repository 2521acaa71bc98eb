"""A contestant: ranks that do steps on request and report how long they took.

Rank 0 connects to the socket named by the environment variable `SOCKET`, and serves orders, one line of JSON
each, until the connection closes:

    {"warm_up": 1, "steps": 3}  ->  {"seconds": 1.21, "cpu_seconds": 2.31}    in total for the three steps

Ranks idle between orders. `contest` suspends their processes, so that they do not slow the others.
"""

import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

SOCKET = "TRAINER_BENCH_SOCKET"

# Returns every rank's value, by rank; all ranks call it together.
Gather = Callable[[Any], list[Any]]


def serve(rank: int, gather: Gather, step: Callable[[], None]) -> None:
    """Do steps as ordered until the contest is over; every rank of a contestant must call it.

    Args:
        rank: This rank.
        gather: Gathers values from all ranks.
        step: Does one full training step of this rank.
    """
    line = _Line() if rank == 0 else None
    while True:
        order = gather(line.read() if line else None)[0]
        if order is None:
            return
        for _ in range(order["warm_up"]):
            step()
        gather(None)  # a barrier: all start together
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(order["steps"]):
            step()
        cpu = sum(gather(time.process_time() - cpu))  # returns when the last rank is done
        if line:
            line.write({"seconds": time.perf_counter() - start, "cpu_seconds": cpu})


class _Line:
    """Rank 0's end of the socket."""

    def __init__(self) -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(os.environ[SOCKET])
        self._file = connection.makefile("rw")

    def read(self) -> Any:
        """Return the next order, or None at the end of the contest."""
        line = self._file.readline()
        return json.loads(line) if line else None

    def write(self, answer: Any) -> None:
        """Answer an order."""
        self._file.write(json.dumps(answer) + "\n")
        self._file.flush()
