"""Maps the ranks' clocks to rank 0's: the zero of `time.perf_counter` is arbitrary, and differs by node."""

import time
from typing import NamedTuple

import numpy as np

from trainer.distributed.world import Communicator

_ROUNDS = 20
_TAG = 1


class Offset(NamedTuple):
    """The offset of rank 0's clock from a rank's, measured once.

    Attributes:
        seconds: Add this to the rank's time to get rank 0's.
        error: The largest error of that, in seconds: half of the fastest round trip (Cristian, 1989).
        at: The rank's time of the measurement.
    """

    seconds: float
    error: float
    at: float = 0.0


class Clock(NamedTuple):
    """A mapping from a rank's clock to rank 0's for all of a run.

    Clocks of different nodes drift apart by some 10 microseconds a second. The offset is interpolated
    linearly between the two measurements; its true error within a long run has not been measured.

    Attributes:
        first: The offset when the run began.
        last: The offset when it ended.
    """

    first: Offset
    last: Offset

    @property
    def drift(self) -> float:
        """Return the change of the offset over the run, in seconds."""
        return self.last.seconds - self.first.seconds

    @property
    def error(self) -> float:
        """Return the largest error of the two measurements, in seconds."""
        return max(self.first.error, self.last.error)

    def read(self, moment: float) -> float:
        """Convert a time of the rank to rank 0's clock, in seconds."""
        span = self.last.at - self.first.at
        share = (moment - self.first.at) / span if span else 0.0
        return moment + self.first.seconds + share * self.drift


def clock_offset(world: Communicator) -> Offset:
    """Return this rank's offset. Every rank must call this; rank 0 answers them one after another."""
    world.barrier()  # the exchange below busy-waits, so let all ranks arrive first
    if world.rank == 0:
        for rank in range(1, world.size):
            _answer(world, rank)
        return Offset(0.0, 0.0, time.perf_counter())
    comm, answer = world.comm, np.zeros(1)
    best = Offset(0.0, float("inf"))
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        comm.Sendrecv(np.zeros(1), 0, _TAG, answer, 0, _TAG)
        half = (time.perf_counter() - start) / 2
        middle = start + half
        best = min(best, Offset(float(answer[0]) - middle, half, middle), key=lambda each: each.error)
    return best


def _answer(world: Communicator, rank: int) -> None:
    request = np.zeros(1)
    for _ in range(_ROUNDS):
        world.comm.Recv(request, rank, _TAG)
        world.comm.Send(np.array([time.perf_counter()]), rank, _TAG)
