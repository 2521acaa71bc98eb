"""How pytest-xdist distributes the tests over its processes.

One process runs the tests that share pools of ranks, as a second one would have to start every rank again.
Another process runs the tests that start their own ranks, and a third those that mostly wait for a limit. All
then take the remaining tests, one by one.

The groups follow from the tests' paths. `--dist loadgroup` would put them into the tests' ids, but
pytest-xdist 3.8 does that without effect under pytest 9.2: every test then forms a group of its own.
"""

from pathlib import PurePath

from xdist.scheduler.loadscope import LoadScopeScheduling

# Modules of tests/parallel that only start their own ranks.
LAUNCHES = {
    "test_broken_horovod",
    "test_failures",
    "test_idle",
    "test_launch",
    "test_mpi_wire",
    "test_pool",
    "test_stalls",
}

# Those that mostly wait for limits, beside both groups.
WAITS = {"test_launch", "test_stalls"}

# Those that need a few small pools besides: there, so that both groups take equally long.
BESIDE_LAUNCHES = {"test_stops", "test_sweep"}


class Groups(LoadScopeScheduling):
    """Starts with the largest group, as its base class does: the tests that need ranks come first."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def group(nodeid: str) -> str:
    """Return the group of a test; all tests of a group run in one process."""
    path = PurePath(nodeid.partition("::")[0])
    if path.parent.name != "parallel":
        return nodeid
    if path.stem in WAITS:
        return "waits"
    return "launches" if path.stem in LAUNCHES | BESIDE_LAUNCHES else "pools"
