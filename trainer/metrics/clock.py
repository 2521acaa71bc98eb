"""The ranks' clocks against rank 0's: `time.perf_counter` starts anywhere, and other on every node."""

import time
from typing import NamedTuple

import numpy as np

from trainer.distributed.world import Communicator

_ROUNDS = 20
_TAG = 1


class Offset(NamedTuple):
    """How to read a rank's clock as rank 0's.

    Attributes:
        seconds: What to add to the rank's time.
        error: How far that may be off, in seconds: half of the fastest way there and back (Cristian, 1989).
        at: The rank's time when it was measured.
    """

    seconds: float
    error: float
    at: float = 0.0


class Clock(NamedTuple):
    """How to read a rank's clock as rank 0's all through a run.

    Clocks of different nodes drift apart by some 10 microseconds a second. Between the two measurements the
    offset is taken to change evenly; how far it strays from that in a long run, nobody has measured.

    Attributes:
        first: Measured when the run began.
        last: Measured when it ended.
    """

    first: Offset
    last: Offset

    @property
    def drift(self) -> float:
        """Return the seconds by which the offset has changed."""
        return self.last.seconds - self.first.seconds

    @property
    def error(self) -> float:
        """Return how far the offset may be off, in seconds, where it was measured."""
        return max(self.first.error, self.last.error)

    def read(self, moment: float) -> float:
        """Return the time of rank 0 at a time of the rank, in seconds."""
        span = self.last.at - self.first.at
        share = (moment - self.first.at) / span if span else 0.0
        return moment + self.first.seconds + share * self.drift


def clock_offset(world: Communicator) -> Offset:
    """Return this rank's offset; every rank calls it, and rank 0 answers them one after another."""
    world.barrier()  # who came earlier would spin below until the last is there
    if world.rank == 0:
        for rank in range(1, world.size):
            _answer(world, rank)
        return Offset(0.0, 0.0, time.perf_counter())
    comm, theirs = world.comm, np.zeros(1)
    best = Offset(0.0, float("inf"))
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        comm.Sendrecv(np.zeros(1), 0, _TAG, theirs, 0, _TAG)
        half = (time.perf_counter() - start) / 2
        middle = start + half
        best = min(best, Offset(float(theirs[0]) - middle, half, middle), key=lambda each: each.error)
    return best


def _answer(world: Communicator, rank: int) -> None:
    asked = np.zeros(1)
    for _ in range(_ROUNDS):
        world.comm.Recv(asked, rank, _TAG)
        world.comm.Send(np.array([time.perf_counter()]), rank, _TAG)
