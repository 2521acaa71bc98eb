"""Messages over MPI, point to point inside a model-parallel group.

A receive is posted before its message is needed, so that the message can arrive while this rank computes.
For that the receiver must know its shape. Shapes follow from the shape of the micro-batch that the first
stage reads, its *signature*:

    [1] At the start of a step the first stage tells every rank the signatures of all micro-batches.
    [2] The first message of a channel with a new signature is preceded by a header with its structure.
    [3] Both ends remember it: from then on the receive is posted ahead, and there is no header.

Tensors on a GPU go through host memory.
"""

import pickle
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer import environment
from trainer.pipeline.activation import Nest, Structure, structure
from trainer.pipeline.transport import Channel, channel_of
from trainer.schedule.actions import RECEIVES, Action, Kind
from trainer.world import Communicator

if TYPE_CHECKING:
    from mpi4py import MPI

_SIGNATURES_TAG = 0
_POSTED_AHEAD = 2  # receives a channel; more would hold memory that 1F1B is there to save
_KINDS = tuple(kind for kind in Kind if kind in RECEIVES)

_Key = tuple[Channel, str, int]  # channel, mode, the signature's number


def _bytes_of(tensor: Tensor) -> Any:
    """Return a contiguous CPU tensor's memory, whatever its type; MPI knows no bfloat16."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


class _Receive:
    """A receive that is posted: where its tensors come in, and the requests to wait for."""

    def __init__(self, shape: Structure, requests: "list[MPI.Request]", buffers: list[Tensor]) -> None:
        self.structure = shape
        self.requests = requests
        self.buffers = buffers


class MpiTransport:
    """Point-to-point messages over the model-parallel group's communicator.

    Args:
        group: The model-parallel group.
        rank_of: The rank, within the group, that holds each stage.
        devices: The devices of this rank's stages.
    """

    def __init__(
        self, group: Communicator, rank_of: Sequence[int], devices: Mapping[int, torch.device]
    ) -> None:
        from mpi4py import MPI  # noqa: PLC0415  (only where there are ranks)

        self._mpi = MPI
        self._group = group
        self._comm = group.comm
        self._rank_of = rank_of
        self._devices = devices
        self._mode = ""
        self._signatures: Sequence[int] = ()  # by micro-batch: a number for each that differs
        self._numbers: dict[Hashable, int] = {}
        self._told: bytes = b""
        self._structures: dict[_Key, Structure] = {}
        self.sizes: dict[tuple[Kind, int, int], int] = {}
        self._sends: deque[tuple[MPI.Request, Any]] = deque()  # each with the memory it reads
        self._expected: dict[Channel, deque[Action]] = {}
        self._posted: dict[Channel, deque[_Receive]] = {}
        self._drained: list[Channel] = []  # may have fewer receives posted than they should
        largest = self._tag((_KINDS[-1], len(rank_of), len(rank_of)))
        limit = MPI.COMM_WORLD.Get_attr(MPI.TAG_UB)
        if limit is not None and largest > limit:
            raise ValueError(f"{len(rank_of)} stages need message tags to {largest}; this MPI has {limit}")

    def begin(self, actions: Sequence[Action], signatures: Sequence[Hashable] | None, mode: str) -> None:
        """Agree on the signatures [1] and post the first receives."""
        self._mode = mode
        self._agree_on(signatures)
        self._expected = {}
        self._drained = []
        for action in actions:
            if action.kind in RECEIVES and self._rank_of[action.peer] != self._group.rank:
                self._expected.setdefault(channel_of(action), deque()).append(action)
        for channel in self._expected:
            self._post(channel)

    def send(self, action: Action, tensors: Sequence[Tensor], nest: Nest) -> None:
        """Start to send, with a header where the receiver cannot know the structure yet [2]."""
        key, shape = self._key(action), structure(list(tensors), nest)
        known = self._structures.get(key)
        target, tag = self._rank_of[action.peer], self._tag(key[0])
        if known is None:
            self._structures[key] = shape
            self._note_size(action, shape)
            self._start(pickle.dumps(shape), target, tag)
        elif known != shape:
            raise RuntimeError(
                f"{action}: the shape of a layer's output must follow from the shape of the data's inputs, "
                f"but for one and the same inputs it was {known.tensors} and is {shape.tensors}"
            )
        for tensor in tensors:
            self._start(_bytes_of(tensor.contiguous().cpu()), target, tag)
        self._group.wake(target)
        self._post_drained()

    def receive(self, action: Action) -> tuple[list[Tensor], Nest]:
        """Wait for a message; the next receives of its channel are posted behind the next send.

        Who waits for that send should not wait for this too; one receive is posted until then.
        """
        self._post_drained()
        key = self._key(action)
        channel = key[0]
        if not self._posted.get(channel):
            if key not in self._structures:
                self._structures[key] = self._receive_header(channel)
            self._post(channel)
        receive = self._posted[channel].popleft()
        # Behind the bell of a larger message, parts of it may still wait for both ends to look.
        whole = receive.structure.bytes <= environment.AT_ONCE
        rings = whole and self._group.hears(self._rank_of[action.peer])
        self._group.meter.wait(lambda: self._mpi.Request.Testall(receive.requests), rings=rings)
        self._drained.append(channel)
        device = self._devices[action.stage]
        tensors = [
            buffer.to(device, non_blocking=True).requires_grad_(spec.requires_grad)
            for buffer, spec in zip(receive.buffers, receive.structure.tensors, strict=True)
        ]
        return tensors, receive.structure.nest

    def progress(self) -> None:
        """Drop the sends that are done; asking lets MPI move all messages on."""
        while self._sends and self._sends[0][0].Test():
            self._sends.popleft()

    def finish(self) -> None:
        """Return when every send is done."""

        def gone() -> bool:
            self.progress()
            return not self._sends

        self._group.meter.wait(gone)

    def _agree_on(self, signatures: Sequence[Hashable] | None) -> None:
        """Tell, or learn, the signatures; an empty message says that they are the last step's."""
        if signatures is None:
            message = self._receive_bytes(self._rank_of[0], _SIGNATURES_TAG)
        else:
            told, self._told = self._told, pickle.dumps(tuple(signatures))
            message = b"" if told == self._told else self._told
            others = [rank for rank in range(self._group.size) if rank != self._rank_of[0]]
            for rank in others:
                self._start(message, rank, _SIGNATURES_TAG)
            self._group.wake(*others)
        if message:
            numbers = self._numbers
            self._signatures = [numbers.setdefault(each, len(numbers)) for each in pickle.loads(message)]

    def _note_size(self, action: Action, shape: Structure) -> None:
        channel = action.kind, action.stage, action.peer
        self.sizes[channel] = max(shape.bytes, self.sizes.get(channel, 0))

    def _start(self, data: Any, target: int, tag: int) -> None:
        request = self._comm.Isend([data, self._mpi.BYTE], target, tag)
        self._sends.append((request, data))

    def _post_drained(self) -> None:
        while self._drained:
            self._post(self._drained.pop())

    def _post(self, channel: Channel) -> None:
        """Post the channel's next receives, as far as their structures are known [3]."""
        expected, posted = self._expected[channel], self._posted.setdefault(channel, deque())
        source, tag = self._rank_of[channel[1]], self._tag(channel)
        while expected and len(posted) < _POSTED_AHEAD:
            shape = self._structures.get(self._key(expected[0]))
            if shape is None:
                return
            expected.popleft()
            pinned = self._devices[channel[2]].type == "cuda"
            buffers = [torch.empty(spec.shape, dtype=spec.dtype, pin_memory=pinned) for spec in shape.tensors]
            requests = [
                self._comm.Irecv([_bytes_of(buffer), self._mpi.BYTE], source, tag) for buffer in buffers
            ]
            posted.append(_Receive(shape, requests, buffers))

    def _receive_header(self, channel: Channel) -> Structure:
        header = self._receive_bytes(self._rank_of[channel[1]], self._tag(channel))
        shape: Structure = pickle.loads(header)
        return shape

    def _receive_bytes(self, source: int, tag: int) -> bytes:
        """Wait for a message of any length."""
        status = self._mpi.Status()
        found: list[MPI.Message] = []

        def probe() -> bool:
            message = self._comm.Improbe(source, tag, status)
            if message is not None:
                found.append(message)
            return bool(found)

        self._group.meter.wait(probe)
        data = bytearray(status.Get_count(self._mpi.BYTE))
        found[0].Recv([data, self._mpi.BYTE])
        return bytes(data)

    def _key(self, action: Action) -> _Key:
        signature = self._signatures[action.micro_batch] if action.micro_batch >= 0 else -1
        return channel_of(action), self._mode, signature

    def _tag(self, channel: Channel) -> int:
        kind, source, target = channel
        stages = len(self._rank_of)
        return 1 + (_KINDS.index(kind) * stages + source) * stages + target
