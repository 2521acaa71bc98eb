"""Ranks that are threads of one process, to test agreement between ranks without MPI."""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

_LIMIT = 60.0  # seconds


class Exchange:
    """The values that ranks have contributed so far, by call, and whether one of them left with an error."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self.given: defaultdict[int, dict[int, Any]] = defaultdict(dict)
        self.left = False

    def leave(self) -> None:
        """Make the other ranks raise instead of waiting, as the end of a real rank ends the others."""
        with self.changed:
            self.left = True
            self.changed.notify_all()


class ThreadRank:
    """One rank, with the methods of `trainer.distributed.world.World` that agreement needs.

    Attributes:
        rank: Its number.
        local_rank: Its number on its node.
        gathered: The number of its gathers.
    """

    def __init__(self, rank: int, local_rank: int, exchange: Exchange) -> None:
        self.rank = rank
        self.local_rank = local_rank
        self.gathered = 0
        self._exchange = exchange

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all ranks by rank; raise if one of them is missing."""
        exchange = self._exchange
        everyone = exchange.given[self.gathered]
        self.gathered += 1
        with exchange.changed:
            everyone[self.rank] = value
            exchange.changed.notify_all()
            exchange.changed.wait_for(lambda: len(everyone) == exchange.size or exchange.left, _LIMIT)
        if len(everyone) < exchange.size:
            raise RuntimeError("another rank did not come")
        return [everyone[rank] for rank in range(exchange.size)]


def on_ranks(job: Callable[[ThreadRank], Any], local_ranks: Sequence[int] = (0, 1)) -> list[Any]:
    """Return, for every rank, a job's result or the exception that it raised.

    Args:
        job: The function that each rank runs.
        local_ranks: Every rank's number on its node.
    """
    exchange = Exchange(len(local_ranks))
    outcomes: list[Any] = [None] * len(local_ranks)

    def run(rank: ThreadRank) -> None:
        try:
            outcomes[rank.rank] = job(rank)
        except Exception as error:
            outcomes[rank.rank] = error
            exchange.leave()

    ranks = [ThreadRank(number, local, exchange) for number, local in enumerate(local_ranks)]
    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
