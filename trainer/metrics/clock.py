"""The ranks' clocks against rank 0's: `time.perf_counter` starts anywhere, and other on every node."""

import time
from typing import NamedTuple

import numpy as np

from trainer.world import Communicator

_ROUNDS = 20
_TAG = 1


class Offset(NamedTuple):
    """How to read a rank's clock as rank 0's.

    Attributes:
        seconds: What to add to the rank's time.
        error: How far that may be off, in seconds: half of the fastest way there and back (Cristian, 1989).
    """

    seconds: float
    error: float


def clock_offset(world: Communicator) -> Offset:
    """Return this rank's offset; every rank calls it, and rank 0 answers them one after another."""
    world.barrier()  # who came earlier would spin below until the last is there
    if world.rank == 0:
        for rank in range(1, world.size):
            _answer(world, rank)
        return Offset(0.0, 0.0)
    comm, theirs = world.comm, np.zeros(1)
    best = Offset(0.0, float("inf"))
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        comm.Sendrecv(np.zeros(1), 0, _TAG, theirs, 0, _TAG)
        way = time.perf_counter() - start
        best = min(best, Offset(theirs[0] - (start + way / 2), way / 2), key=lambda offset: offset.error)
    return best


def _answer(world: Communicator, rank: int) -> None:
    asked = np.zeros(1)
    for _ in range(_ROUNDS):
        world.comm.Recv(asked, rank, _TAG)
        world.comm.Send(np.array([time.perf_counter()]), rank, _TAG)
