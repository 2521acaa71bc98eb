"""Messages between the ranks of a model-parallel group: what is sent when, and what is known in advance.

A receive is posted before its message is needed, so that the message can arrive while this rank computes.
For that the receiver must know its shape. Shapes follow from the shape of the micro-batch that the first
stage reads, its *signature*:

    [1] At the start of a step the first stage sends every rank the signatures of all micro-batches.
    [2] The first message of a channel with a new signature is preceded by a header with its structure.
    [3] Both ends remember it: from then on the receive is posted ahead, and there is no header.

Signatures and headers are control messages. Tensors go over whatever wire connects the two ranks. Nothing
here knows MPI, and its tests need no ranks.
"""

import pickle
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.pipeline.activation import Nest, Structure, structure
from trainer.pipeline.transport import Channel, channel_of
from trainer.pipeline.wires.wire import Arrival, ControlWire, Sending, Wire
from trainer.schedule.actions import RECEIVES, Action, Kind
from trainer.waiting import WaitMeter, wait

_SIGNATURES_TAG = 0
_POSTED_AHEAD = 2  # receives a channel; more would hold memory that 1F1B is there to save
_KINDS = tuple(kind for kind in Kind if kind in RECEIVES)

_Key = tuple[Channel, str, int]  # channel, mode, the signature's number


def number_of_tags(stages: int) -> int:
    """Return how many tags the messages between so many stages use, counted from 0."""
    return 1 + len(_KINDS) * stages * stages


class _Link(NamedTuple):
    """The wire to a rank, and the sends under way on that wire, to all ranks that it reaches."""

    wire: Wire
    sends: deque[Sending]


class Messages:
    """Sends and receives activations and gradients along channels: a `Transport`.

    Args:
        rank: This rank of the group.
        rank_of: The rank of the group that holds each stage.
        devices: The devices of this rank's stages.
        control: Reaches every rank of the group, for signatures and headers.
        wire_to: Returns the wire for tensors to and from another rank; it may be `control`.
        meter: Takes the seconds of waiting.

    Attributes:
        sizes: As of `Transport`.
    """

    def __init__(
        self,
        *,
        rank: int,
        rank_of: Sequence[int],
        devices: Mapping[int, torch.device],
        control: ControlWire,
        wire_to: Callable[[int], Wire],
        meter: WaitMeter,
    ) -> None:
        self.sizes: dict[tuple[Kind, int, int], int] = {}
        self._rank_of = rank_of
        self._devices = devices
        self._control = control
        self._meter = meter
        self._first, self._others = rank_of[0], sorted(set(rank_of) - {rank})
        self._control_sends: deque[Sending] = deque()
        self._under_way = {id(control): self._control_sends}  # by wire
        self._links: dict[int, _Link] = {}  # by rank
        for other in self._others:
            wire = wire_to(other)
            self._links[other] = _Link(wire, self._under_way.setdefault(id(wire), deque()))
        self._mode = ""
        self._signatures: Sequence[int] = ()  # by micro-batch: a number for each that differs
        self._numbers: dict[Hashable, int] = {}
        self._last_sent = b""  # signatures, pickled
        self._structures: dict[_Key, Structure] = {}
        self._expected: dict[Channel, deque[Action]] = {}
        self._posted: dict[Channel, deque[tuple[Structure, Arrival]]] = {}
        self._drained: list[Channel] = []  # may have fewer receives posted than they should

    @property
    def waited(self) -> float:
        """Return the seconds of waiting on the meter."""
        return self._meter.seconds

    def begin(self, actions: Sequence[Action], signatures: Sequence[Hashable] | None, mode: str) -> None:
        """Agree on the signatures [1] and post the first receives."""
        self._mode = mode
        self._agree_on(signatures)
        self._expected = {}
        self._drained = []
        for action in actions:
            if action.kind in RECEIVES and self._rank_of[action.peer] in self._links:
                self._expected.setdefault(channel_of(action), deque()).append(action)
        for channel in self._expected:
            self._post(channel)

    def send(self, action: Action, tensors: Sequence[Tensor], nest: Nest) -> None:
        """Start to send, with a header where the receiver cannot know the structure yet [2].

        Raises:
            RuntimeError: The structure differs from that of an earlier message whose micro-batch had the
                same signature.
        """
        key, shape = self._key(action), structure(list(tensors), nest)
        target, tag = self._rank_of[action.peer], self._tag(key[0])
        known = self._structures.get(key)
        if known is None:
            self._structures[key] = shape
            self._note_size(action, shape)
            self._send_control(pickle.dumps(shape), target, tag)
        elif known != shape:
            raise RuntimeError(
                f"{action}: the shape of a layer's output must follow from the shape of the data's inputs, "
                f"but for one and the same inputs it was {known.tensors} and is {shape.tensors}"
            )
        link = self._links[target]
        link.sends.append(link.wire.send(tensors, target, tag))
        self._post_drained()

    def receive(self, action: Action) -> tuple[list[Tensor], Nest]:
        """Wait for a message; the next receives of its channel are posted after the next send.

        A rank that waits for that send should not wait for this too; one receive is posted until then.
        """
        self._post_drained()
        key = self._key(action)
        channel = key[0]
        if not self._posted.get(channel):
            if key not in self._structures:
                self._structures[key] = self._receive_header(channel)
            self._post(channel)
        shape, arrival = self._posted[channel].popleft()
        self._meter.wait(arrival.done, rings=arrival.rings)
        self._drained.append(channel)
        tensors = arrival.tensors()
        for tensor, spec in zip(tensors, shape.tensors, strict=True):
            tensor.requires_grad_(spec.requires_grad)
        return tensors, shape.nest

    def progress(self) -> None:
        """Forget the sends that are done; asking lets the wires move all messages on."""
        for sends in self._under_way.values():
            while sends and sends[0].done():
                sends.popleft()

    def finish(self) -> None:
        """Return when every send is done."""

        def gone() -> bool:
            self.progress()
            return not any(self._under_way.values())

        wait(gone)

    def _agree_on(self, signatures: Sequence[Hashable] | None) -> None:
        """Send, or receive, the signatures; an empty message says that they are the last step's."""
        if signatures is None:
            message = self._receive_bytes(self._first, _SIGNATURES_TAG)
        else:
            sent, self._last_sent = self._last_sent, pickle.dumps(tuple(signatures))
            message = b"" if sent == self._last_sent else self._last_sent
            for other in self._others:
                self._send_control(message, other, _SIGNATURES_TAG)
        if message:
            numbers = self._numbers
            self._signatures = [numbers.setdefault(each, len(numbers)) for each in pickle.loads(message)]

    def _note_size(self, action: Action, shape: Structure) -> None:
        channel = action.kind, action.stage, action.peer
        self.sizes[channel] = max(shape.bytes, self.sizes.get(channel, 0))

    def _send_control(self, data: bytes, target: int, tag: int) -> None:
        self._control_sends.append(self._control.send_bytes(data, target, tag))

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
            arrival = self._links[source].wire.receive(shape, self._devices[channel[2]], source, tag)
            posted.append((shape, arrival))

    def _receive_header(self, channel: Channel) -> Structure:
        header = self._receive_bytes(self._rank_of[channel[1]], self._tag(channel))
        shape: Structure = pickle.loads(header)
        return shape

    def _receive_bytes(self, source: int, tag: int) -> bytes:
        """Wait for a message of any length."""
        found: list[bytes] = []

        def probe() -> bool:
            message = self._control.probe(source, tag)
            if message is not None:
                found.append(message)
            return bool(found)

        self._meter.wait(probe)
        return found[0]

    def _key(self, action: Action) -> _Key:
        signature = self._signatures[action.micro_batch] if action.micro_batch >= 0 else -1
        return channel_of(action), self._mode, signature

    def _tag(self, channel: Channel) -> int:
        kind, source, target = channel
        stages = len(self._rank_of)
        return 1 + (_KINDS.index(kind) * stages + source) * stages + target
