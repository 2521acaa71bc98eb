"""How many cores this job has on this node: fewer than the machine, in a container, a batch job, or if bound.

| limit | set by |
| --- | --- |
| affinity mask of this process | taskset, cpusets; launchers bind every rank to cores of its own |
| affinity mask of the launcher | as above; bound ranks have it together |
| CPU quota of a control group | containers (`--cpus`, Kubernetes' limits); it counts time, not cores |
| CPUs of the allocation | Slurm, which need not enforce it |
"""

import math
import os
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

_BOUND = ("OMPI_MCA_orte_bound_at_launch", "SLURM_CPU_BIND_TYPE", "PMI_RANK")
_MARKS = (b"OMPI_COMM_WORLD_RANK=", b"PMIX_RANK=", b"PMI_RANK=")


def job_cores(environment: Mapping[str, str], *, launched: bool) -> int:
    """Return the number of cores that the ranks of this node share, bound or not."""
    mine = os.sched_getaffinity(0)
    theirs = _launcher_mask() if launched and any(environment.get(name) for name in _BOUND) else mine
    limits = [float(len(mine | theirs)), cpu_quota(), _allocated(environment)]
    return max(1, math.ceil(min(limits)))


def cores_of_rank(masks: Sequence[AbstractSet[int]], rank: int) -> float:
    """Return how many cores a rank has if the ranks that may use a core share it evenly.

    Args:
        masks: The cores that each rank of the node may use.
        rank: One of them.
    """
    return sum(1 / sum(core in mask for mask in masks) for core in masks[rank])


def _allocated(environment: Mapping[str, str]) -> float:
    """Return the CPUs that Slurm has allocated on this node, or infinity."""
    given = environment.get("SLURM_CPUS_ON_NODE", "")
    return float(given) if given.isdigit() and int(given) > 0 else math.inf


def _launcher_mask() -> set[int]:
    """Return the cores of the launcher: the nearest ancestor that is no rank, such as a shell script's."""
    process = os.getpid()
    try:
        while process > 1:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
            if not any(mark in Path(f"/proc/{process}/environ").read_bytes() for mark in _MARKS):
                break
    except (OSError, ValueError):  # of another user, as Slurm's: it is no rank
        pass
    try:
        return os.sched_getaffinity(max(process, 1))
    except OSError:
        return os.sched_getaffinity(0)


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> float:
    """Return how many cores' time this process's control groups may use, of either version; or infinity."""
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        return math.inf
    quotas = [math.inf]
    for _, controllers, path in lines:
        if controllers == "":
            quotas += [_quota_2(folder) for folder in _upwards(root, path)]
        elif "cpu" in controllers.split(","):
            for name in (controllers, "cpu"):
                quotas += [_quota_1(folder) for folder in _upwards(root / name, path)]
    return min(quotas)


def _upwards(root: Path, path: str) -> list[Path]:
    """Return a group's folder and those above it; within a container the path may not exist."""
    folder = root / path.lstrip("/")
    return [folder, *(above for above in folder.parents if above == root or root in above.parents)]


def _quota_2(folder: Path) -> float:
    return _ratio(_read(folder / "cpu.max").split())


def _quota_1(folder: Path) -> float:
    return _ratio([_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")])


def _ratio(numbers: list[str]) -> float:
    try:
        quota, period = (float(number) for number in numbers)
    except ValueError:  # "max", or no such file
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
