"""What the ranks of `--check` run: messages go there and back, between hosts and within them."""

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from trainer.launch.network import Measured, overrides, table, write

_SIZES = {8: 200, 1 << 10: 200, 1 << 16: 100, 1 << 20: 30, 4 << 20: 15}  # bytes: repetitions
_ALL_PAIRS = 8  # hosts; of more, neighbours alone
_WARM_UP = 3
_POLL = 0.002  # seconds


def main() -> None:
    """Measure on all ranks; rank 0 prints a table, and writes the file that the first argument names."""
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")  # two ranks may share a core
    from mpi4py import MPI  # noqa: PLC0415  (starts MPI)

    world = MPI.COMM_WORLD
    slots: dict[str, int] = json.loads(sys.argv[2])
    names = world.allgather(MPI.Get_processor_name())
    measured = []
    for first, second in pairs(names):
        seconds = {size: _ping_pong(world, first, second, size, times) for size, times in _SIZES.items()}
        if world.rank == first:
            measured.append(Measured((names[first], names[second]), seconds))
        _wait(world.Ibarrier().Test)
    gathered = world.gather(measured)
    if world.rank == 0 and gathered is not None:
        links = [link for each in gathered for link in each]
        if not links:
            print("one host with one slot has no links to measure", flush=True)
            return
        print(table(links))
        values = write(Path(sys.argv[1]), links, slots)
        print(
            f"\nwritten to {sys.argv[1]}; plan with: python -m trainer.plan ranks={sum(slots.values())} "
            f"cluster={sys.argv[1]} ...\nor: {' '.join(overrides(values))}",
            flush=True,
        )


def pairs(names: list[str]) -> list[tuple[int, int]]:
    """Return the pairs of ranks to measure: the first two of every host, and the first of different hosts."""
    by_host: dict[str, list[int]] = {}
    for rank, name in enumerate(names):
        by_host.setdefault(name, []).append(rank)
    inside = [(ranks[0], ranks[1]) for ranks in by_host.values() if len(ranks) > 1]
    leaders = [ranks[0] for ranks in by_host.values()]
    if len(leaders) <= _ALL_PAIRS:
        return inside + list(combinations(leaders, 2))
    return inside + list(zip(leaders, leaders[1:] + leaders[:1], strict=True))


def _ping_pong(world: Any, first: int, second: int, size: int, times: int) -> float:
    """Return half of the median seconds there and back; 0 on a rank that takes no part."""
    buffer, taken = bytearray(size), []
    for _ in range(_WARM_UP + times):
        began = time.perf_counter()
        if world.rank == first:
            world.Send(buffer, second)
            world.Recv(buffer, second)
        elif world.rank == second:
            world.Recv(buffer, first)
            world.Send(buffer, first)
        taken.append(time.perf_counter() - began)
    return median(taken[_WARM_UP:]) / 2


def _wait(done: Callable[[], bool]) -> None:
    """Wait without taking time from the ranks that measure."""
    while not done():
        time.sleep(_POLL)


if __name__ == "__main__":
    main()
