"""The MPI world: its ranks, its split into groups, Horovod on one of them, and agreement between ranks.

MPI is imported when a `World` is created, not before, so that code without ranks needs no MPI.
"""

import importlib
import os
import pickle
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray

from trainer import __version__
from trainer.distributed import environment, launcher
from trainer.distributed.cores import cores_of_rank
from trainer.distributed.heartbeat import Phase, Waits, Word, heartbeat
from trainer.distributed.limits import explain
from trainer.distributed.mpi import start_mpi
from trainer.distributed.oversubscription import sleep_in_background_threads
from trainer.distributed.waiting import WaitMeter, can_be_woken_by, use_wakeup_socket, wake
from trainer.distributed.wakeup import open_wakeup_socket
from trainer.errors import UserError, listed

if TYPE_CHECKING:
    from mpi4py import MPI

    from trainer.distributed.layout import Layout

_LONGEST_MESSAGE = 1 << 30  # bytes; MPI counts in 32 bits


class Communicator:
    """A group of ranks. Calls wait without spinning, so that signals are handled and neighbours can compute.

    Args:
        comm: MPI's.
        meter: Adds up the seconds of waiting.
        waits: What heartbeats call the group; RANK, if they do not name it.

    Attributes:
        rank: This rank's number in the group.
        size: The number of its ranks.
        meter: Adds up the seconds that this rank waits in calls.
    """

    def __init__(self, comm: "MPI.Comm", meter: WaitMeter, waits: Waits = Waits.RANK) -> None:
        self.comm = comm
        self.meter = meter
        self._waits = waits
        if waits is not Waits.RANK:
            heartbeat.begin_group(waits)
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        world = importlib.import_module("mpi4py.MPI").COMM_WORLD.Get_group()
        self._members: list[int] = comm.Get_group().Translate_ranks(range(self.size), world)

    def wake(self, *ranks: int) -> None:
        """Wake ranks of the group, which may wait for what this one has just sent."""
        wake(self._members[rank] for rank in ranks)

    def can_be_woken_by(self, rank: int) -> bool:
        """Return whether a rank of the group wakes this one after it has sent a message."""
        return can_be_woken_by(self._members[rank])

    def barrier(self) -> None:
        """Return when every rank of the group has called this."""
        self._join()
        request = self.comm.Ibarrier()
        self.wake(*range(self.size))
        self.meter.wait(request.Test)
        heartbeat.go_on()

    def all_gather(self, values: NDArray[Any], counts: list[int]) -> NDArray[Any]:
        """Return the vectors of all ranks, concatenated by rank; `counts` are their lengths by rank."""
        if self.size == 1:
            return values
        gathered = np.empty(sum(counts), dtype=values.dtype)
        self._join()
        request = self.comm.Iallgatherv(values, [gathered, counts])
        self.wake(*range(self.size))
        # Open MPI's is a single round: when the last rank to join wakes this one, everything has arrived.
        expects_wakeup = all(self.can_be_woken_by(rank) for rank in range(self.size) if rank != self.rank)
        self.meter.wait(request.Test, expects_wakeup=expects_wakeup)
        heartbeat.go_on()
        return gathered

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank; they are small and of plain types."""
        data = np.frombuffer(pickle.dumps(value), dtype=np.uint8)
        sizes = self.all_gather(np.array([data.size]), [1] * self.size).tolist()
        gathered = self.all_gather(data, sizes).tobytes()
        ends = np.cumsum(sizes).tolist()
        return [pickle.loads(gathered[end - size : end]) for size, end in zip(sizes, ends, strict=True)]

    def send_bytes(self, data: bytes, target: int) -> None:
        """Send any number of bytes to a rank that calls `receive_bytes`."""
        parts = [data[start : start + _LONGEST_MESSAGE] for start in range(0, len(data), _LONGEST_MESSAGE)]
        for part in (np.array([len(data)]), *parts):
            request = self.comm.Isend(part, target)
            self.wake(target)
            heartbeat.wait_for(self._members[target])
            self.meter.wait(request.Test)
            heartbeat.go_on()

    def receive_bytes(self, source: int) -> bytes:
        """Return the bytes that a rank sends with `send_bytes`."""
        length = np.zeros(1, dtype=np.int64)
        heartbeat.wait_for(self._members[source])
        self.meter.wait(self.comm.Irecv(length, source).Test)
        data = np.empty(length[0], dtype=np.uint8)
        for start in range(0, len(data), _LONGEST_MESSAGE):
            self.meter.wait(self.comm.Irecv(data[start : start + _LONGEST_MESSAGE], source).Test)
            heartbeat.enter(Phase(heartbeat.words[Word.PHASE]))  # a long message is progress
        heartbeat.go_on()
        return data.tobytes()

    def _join(self) -> None:
        """Note that this rank waits for the group, if heartbeats name it."""
        if self._waits is not Waits.RANK:
            heartbeat.join(self._waits)


class World(Communicator):
    """All ranks of the run.

    Attributes:
        local_rank: This rank's number on its node.
        local_size: The number of ranks on the node.
        cores_of_rank: The cores that each of them has to itself, fewer if several may use a core.
    """

    def __init__(self) -> None:
        # Before Horovod, so that mpi4py initialises MPI with the thread support that both need.
        with heartbeat.during(Phase.MPI):
            MPI = start_mpi()  # noqa: N806
        super().__init__(MPI.COMM_WORLD, WaitMeter(), Waits.WORLD)
        launcher.check_size(self.size)
        node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank: int = node.Get_rank()
        self.local_size: int = node.Get_size()
        self.cores_of_rank = float(len(os.sched_getaffinity(0)))
        if self.local_size > 1:
            neighbours = Communicator(node, self.meter)
            self._enable_wakeups(neighbours)
            masks = [set(mask) for mask in neighbours.all_gather_objects(sorted(os.sched_getaffinity(0)))]
            self.cores_of_rank = min(cores_of_rank(masks, rank) for rank in range(len(masks)))
        node.Free()

    def _enable_wakeups(self, node: Communicator) -> None:
        """Let the ranks of a node wake one another from waiting; where they cannot, they poll."""
        gathered = node.all_gather_objects((self.rank, uuid4().hex))
        ranks, job = [rank for rank, _ in gathered], gathered[0][1]
        wakeup_socket = open_wakeup_socket(job=job, rank=self.rank, neighbours=ranks)
        # Without a barrier, a neighbour whose socket is not open yet would be taken for one that has exited.
        node.barrier()
        if wakeup_socket is not None:
            use_wakeup_socket(wakeup_socket)

    def split(self, layout: "Layout", threads: int = 1) -> "Groups":
        """Return this rank's model-parallel and data-parallel groups.

        The data-parallel group becomes Horovod's world, so that equal stages share one ring. With a single
        replica there is nothing to average, and Horovod does not start.

        Args:
            layout: The layout.
            threads: The number each rank computes with; if they leave no core free, Horovod's thread sleeps.
        """
        replica, position = layout.replica(self.rank), layout.group_rank(self.rank)
        heartbeat.join(Waits.WORLD)
        model_parallel = self.comm.Split(replica, position)
        data_parallel = self.comm.Split(position, replica)
        if layout.replicas > 1:
            if environment.no_core_to_spare(self.local_size, threads):
                environment.slow_down_horovod(self.local_size)
                sleep_in_background_threads()
            _start_horovod(data_parallel)
        heartbeat.go_on()
        return Groups(
            Communicator(model_parallel, self.meter, Waits.PIPELINE),
            Communicator(data_parallel, self.meter, Waits.REPLICAS),
        )

    def agree(self, what: str, facts: Mapping[str, Any]) -> None:
        """Return if every rank has the same facts.

        Raises:
            UserError: On every rank alike. Names a fact, both values, and the ranks that differ from rank 0.
        """
        everyone = self.all_gather_objects({key: str(value) for key, value in facts.items()})
        for key, ranks in differing(everyone):
            raise UserError(
                f"the ranks differ in their {what}: {key} is {everyone[0][key]!r} on rank 0 but "
                f"{everyone[ranks[0]].get(key)!r} on {listed('rank', ranks)}: start every rank from the same "
                "files and command"
            )


def differing(everyone: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, list[int]]]:
    """Yield the keys whose values, given by rank, differ, with the ranks that differ from rank 0."""
    for key, value in everyone[0].items():
        ranks = [rank for rank, theirs in enumerate(everyone) if theirs.get(key) != value]
        if ranks:
            yield key, ranks


class Groups:
    """The two groups that a rank belongs to.

    Attributes:
        model_parallel: The ranks that together hold one replica of the model.
        data_parallel: The ranks that hold the same stages, one of each replica.
    """

    def __init__(self, model_parallel: Communicator, data_parallel: Communicator) -> None:
        self.model_parallel = model_parallel
        self.data_parallel = data_parallel


def _start_horovod(comm: "MPI.Comm") -> None:
    """Make a data-parallel group Horovod's world, which a process can do only once.

    Raises:
        UserError: An earlier run of a sweep had another layout.
    """
    library = horovod()
    if not library.is_initialized():
        library.init(comm=comm)
    elif (library.size(), library.rank()) != (comm.Get_size(), comm.Get_rank()):
        raise UserError(
            "a sweep cannot change the number of replicas, because Horovod starts once per process: "
            "launch once for each value of layout.stages"
        )


def horovod() -> Any:
    """Return Horovod's module for torch.

    Raises:
        UserError: It is not installed, was built against another torch or MPI, or there is no memory for it.
    """
    importlib.import_module("mpi4py.MPI")
    rebuild = "`make setup` builds it for this torch (see README.md, Installation)"
    try:
        importlib.import_module("horovod")
    except ImportError:
        raise UserError(f"Horovod is not installed: {rebuild}") from None
    try:
        return importlib.import_module("horovod.torch")
    except (ImportError, OSError) as error:
        if (limit := explain(error)) is not None:
            raise UserError(f"Horovod cannot be loaded ({error}): {limit}") from error
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"Horovod was built against another torch or MPI; this torch is {torch.__version__} ({reason}): "
            f"{rebuild}"
        ) from error


def versions() -> dict[str, str]:
    """Return the versions of everything that can change a result, by name."""
    return {
        "trainer": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "horovod": str(getattr(importlib.import_module("horovod"), "__version__", "unknown")),
        "numpy": np.__version__,
        "mpi": importlib.import_module("mpi4py.MPI").Get_library_version().splitlines()[0].rstrip("\0"),
    }
