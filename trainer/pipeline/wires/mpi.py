"""The wire over MPI: it reaches every rank, so it carries control messages, and tensors by default.

Tensors on a GPU go through host memory.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.activation import ActivationSpec
from trainer.distributed import environment
from trainer.distributed.world import Communicator

if TYPE_CHECKING:
    from mpi4py import MPI


class MpiWire:
    """Point-to-point messages over a group's communicator.

    Args:
        group: The ranks that it connects.
        tags: The number of tags in use, counted from 0.

    Raises:
        ValueError: MPI has fewer tags.
    """

    def __init__(self, group: Communicator, tags: int) -> None:
        from mpi4py import MPI  # noqa: PLC0415  (only where there are ranks)

        limit = MPI.COMM_WORLD.Get_attr(MPI.TAG_UB)
        if limit is not None and tags - 1 > limit:
            raise ValueError(
                f"these stages need message tags up to {tags - 1}; this MPI supports tags up to {limit}"
            )
        self._mpi = MPI
        self._comm = group.comm
        self._group = group

    def send(self, tensors: Sequence[Tensor], target: int, tag: int) -> "_Sending":
        """Start to send tensors, one MPI message each."""
        memory = [_bytes_of(tensor.detach().contiguous().cpu()) for tensor in tensors]
        return self._start(memory, target, tag)

    def send_bytes(self, data: bytes, target: int, tag: int) -> "_Sending":
        """Start to send bytes."""
        return self._start([data], target, tag)

    def receive(self, structure: ActivationSpec, device: torch.device, source: int, tag: int) -> "_Arrival":
        """Post a receive for every tensor of a message, into pinned memory if it is needed on a GPU."""
        pinned = device.type == "cuda"
        buffers, requests, size = [], [], 0
        for spec in structure.tensors:
            buffer = torch.empty(spec.shape, dtype=spec.dtype, pin_memory=pinned)
            memory = _bytes_of(buffer)
            requests.append(self._comm.Irecv([memory, self._mpi.BYTE], source, tag))
            buffers.append(buffer)
            size += memory.nbytes
        # A message sent by rendezvous arrives only after both ends have polled MPI again.
        expects_wakeup = size <= environment.EAGER_LIMIT and self._group.can_be_woken_by(source)
        return _Arrival(self._mpi.Request.Testall, requests, buffers, device, expects_wakeup)

    def probe(self, source: int, tag: int) -> bytes | None:
        """Return the next message with this tag if it has arrived."""
        status = self._mpi.Status()
        message = self._comm.Improbe(source, tag, status)
        if message is None:
            return None
        data = bytearray(status.Get_count(self._mpi.BYTE))
        message.Recv([data, self._mpi.BYTE])
        return bytes(data)

    def _start(self, memory: list[Any], target: int, tag: int) -> "_Sending":
        requests = [self._comm.Isend([each, self._mpi.BYTE], target, tag) for each in memory]
        self._group.wake(target)
        return _Sending(requests, memory)


class _Sending:
    """MPI requests, and the memory that they read."""

    __slots__ = ("_memory", "_requests")

    def __init__(self, requests: "list[MPI.Request]", memory: list[Any]) -> None:
        self._requests = requests
        self._memory = memory

    def done(self) -> bool:
        """Return whether every request is complete."""
        while self._requests and self._requests[-1].Test():
            self._requests.pop()
        return not self._requests


class _Arrival:
    """MPI requests, and the buffers that they fill.

    Attributes:
        expects_wakeup: Whether the sender wakes this rank, and has sent everything by then.
    """

    __slots__ = ("_buffers", "_device", "_requests", "_test_all", "expects_wakeup")

    def __init__(
        self,
        test_all: "Callable[[list[MPI.Request]], bool]",
        requests: "list[MPI.Request]",
        buffers: list[Tensor],
        device: torch.device,
        expects_wakeup: bool,
    ) -> None:
        self.expects_wakeup = expects_wakeup
        self._test_all = test_all
        self._requests = requests
        self._buffers = buffers
        self._device = device

    def done(self) -> bool:
        """Return whether every buffer is filled."""
        return self._test_all(self._requests)

    def tensors(self) -> list[Tensor]:
        """Return the tensors."""
        return [buffer.to(self._device, non_blocking=True) for buffer in self._buffers]


def _bytes_of(tensor: Tensor) -> Any:
    """Return a contiguous CPU tensor's memory, whatever its type; MPI has no bfloat16."""
    return tensor.reshape(-1).view(torch.uint8).numpy()
