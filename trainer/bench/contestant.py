"""One side of a contest: ranks that do steps when they are asked to, and tell how long they took.

Rank 0 connects to the socket that `SOCKET` names and serves orders, a line of JSON each, until there are no
more:

    {"warm_up": 1, "steps": 3}  ->  {"seconds": 1.21, "cpu_seconds": 2.31}    of the three steps together

Between orders no rank computes; `contest` stops their processes, so that they take nothing from the others.
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
    """Do steps as ordered, until the contest is over; every rank of a contestant calls it.

    Args:
        rank: This rank's number.
        gather: How the ranks tell each other.
        step: One whole training step of this rank.
    """
    line = _Line() if rank == 0 else None
    while True:
        order = gather(line.read() if line else None)[0]
        if order is None:
            return
        for _ in range(order["warm_up"]):
            step()
        gather(None)  # all start together
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(order["steps"]):
            step()
        cpu = sum(gather(time.process_time() - cpu))  # and the last one ends it
        if line:
            line.write({"seconds": time.perf_counter() - start, "cpu_seconds": cpu})


class _Line:
    """Rank 0's end of the socket."""

    def __init__(self) -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(os.environ[SOCKET])
        self._file = connection.makefile("rw")

    def read(self) -> Any:
        """Return the next order; None where there is none any more."""
        line = self._file.readline()
        return json.loads(line) if line else None

    def write(self, answer: Any) -> None:
        self._file.write(json.dumps(answer) + "\n")
        self._file.flush()
