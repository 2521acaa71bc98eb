"""The pools of a session: started on demand; the least recently used one ends when there are too many ranks.

Horovod starts once a process, with one communicator, and then reads whether it must add in a fixed order. So
jobs with several replicas need a pool of the same kind. Jobs with one replica run in any pool with the right
number of ranks.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.launch import LIMIT, Result
from tests.support.pool import Pool
from trainer.distributed.layout import Layout
from trainer.errors import UserError

_MANY = 1000  # layers
_MOST_RANKS = 28  # in all pools together, so that the suite starts each pool once; a rank takes 0.25 GB


class Pools:
    """The pools that jobs run in.

    Args:
        make_folder: Returns an empty folder for a pool.
    """

    def __init__(self, make_folder: Callable[[], Path]) -> None:
        self._make_folder = make_folder
        self._pools: list[Pool] = []  # least recently used first

    def run(
        self,
        ranks: int,
        overrides: Sequence[str],
        folder: Path,
        *,
        module: str = "trainer",
        mutation: str | None = None,
        limit: float = LIMIT,
    ) -> Result:
        """Run a module of the trainer on some ranks in a folder, and wait for it, as `launch` does."""
        deterministic = is_deterministic(module, overrides)
        pool = self.pool(ranks, replicas(ranks, overrides), deterministic=deterministic)
        return pool.run(
            list(overrides),
            folder,
            module=module,
            mutation=mutation,
            deterministic=deterministic,
            limit=limit,
        )

    def pool(self, ranks: int, replicas: int, *, deterministic: bool) -> Pool:
        """Return a pool that can run such a job."""
        self._pools = [pool for pool in self._pools if pool.usable]
        fitting = [pool for pool in self._pools if _fits(pool, ranks, replicas, deterministic)]
        if fitting:
            # Prefer pools in which Horovod runs: the others stay free for jobs that start it differently.
            pool = max(fitting, key=lambda pool: (pool.replicas > 0, self._pools.index(pool)))
            self._pools.remove(pool)
        else:
            while self._pools and sum(each.ranks for each in self._pools) + ranks > _MOST_RANKS:
                self._pools.pop(0).end()
            pool = Pool(ranks, self._make_folder())
        self._pools.append(pool)
        return pool

    def end(self) -> None:
        """End all pools."""
        for pool in self._pools:
            pool.end()


def replicas(ranks: int, overrides: Sequence[str]) -> int:
    """Return the number of replicas that a command's overrides make of some ranks; 1 if they do not fit."""
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    stages = given.get("layout.stages", "auto").partition(",")[0]  # the first value of a sweep
    per_rank = int(given.get("layout.devices_per_rank", 1))
    try:
        return Layout.of(ranks, int(stages) if stages.isdigit() else stages, per_rank, _MANY).replicas
    except UserError:
        return 1


def is_deterministic(module: str, overrides: Sequence[str]) -> bool:
    """Return whether a command starts Horovod with a fixed order of addition."""
    return module == "trainer.verify" or "train.deterministic=true" in overrides


def _fits(pool: Pool, ranks: int, replicas: int, deterministic: bool) -> bool:
    started = pool.replicas > 0 and replicas > 1
    kind = (pool.replicas, pool.deterministic)
    return pool.ranks == ranks and (not started or kind == (replicas, deterministic))
