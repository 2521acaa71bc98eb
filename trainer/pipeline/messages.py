"""Messages between the ranks of a model-parallel group: what is sent when, and what is known in advance.

A receive is posted before its message is needed, so that the message can arrive while this rank computes.
For that the receiver must know its structure. Structures usually follow from that of the micro-batch that the
first stage reads, its *signature*:

    [1] At the start of a step the first stage sends every rank the signatures of all micro-batches.
    [2] A message is preceded by a header with its structure, as long as the structure may vary.
    [3] Once a channel has carried a few messages of a signature, all of one structure, both ends take it for
        granted: receives are posted ahead, without headers.
    [4] Where two messages of a signature differ, the values of the samples decide (selected tokens, packed
        sequences): such a channel keeps its headers.

Signatures and headers are control messages. Tensors go over whatever wire connects the two ranks. Nothing
here knows MPI, and its tests need no ranks.
"""

import pickle
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.activation import ActivationSpec, TreeSpec, spec_of
from trainer.distributed.waiting import WaitMeter
from trainer.errors import TrainingError
from trainer.pipeline.structures import TRIALS, Key, Structures
from trainer.pipeline.wires.wire import Arrival, ControlWire, Sending, Wire
from trainer.schedule.actions import RECEIVE_OF, RECEIVES, Action, Kind

_SIGNATURES_TAG = 0
_POSTED_AHEAD = 2  # receives per channel; more would hold memory that 1F1B saves
_KINDS = tuple(kind for kind in Kind if kind in RECEIVES)

_End = tuple[Kind, int, int]  # the kind of this rank's end of a channel, its stage, the other end's stage


def number_of_tags(stages: int) -> int:
    """Return how many tags the messages between n stages use, counted from 0."""
    return 1 + len(_KINDS) * stages * stages


@dataclass(slots=True)
class _Outlet:
    """The sending end of a channel.

    Attributes:
        wire: Carries its tensors.
        sends: The pending sends on that wire, of all channels.
        target: The rank of the group at the other end.
        tag: The tag of all its messages.
        structures: Those of its messages.
    """

    wire: Wire
    sends: deque[Sending]
    target: int
    tag: int
    structures: Structures = field(default_factory=Structures)


@dataclass(slots=True)
class _Inlet:
    """The receiving end of a channel.

    Attributes:
        wire: Carries its tensors.
        source: The rank of the group at the other end.
        tag: The tag of all its messages.
        device: Where its tensors are needed.
        structures: Those of its messages.
        expected: This step's messages without a posted receive.
        posted: The posted receives, and the structures of their messages.
    """

    wire: Wire
    source: int
    tag: int
    device: torch.device
    structures: Structures = field(default_factory=Structures)
    expected: deque[Action] = field(default_factory=deque)
    posted: deque[tuple[ActivationSpec, Arrival]] = field(default_factory=deque)


class Messages:
    """Sends and receives activations and gradients along channels: a `Transport`.

    Args:
        rank: This rank of the group.
        rank_of: The rank of the group that holds each stage.
        devices: The devices of this rank's stages.
        control: Reaches every rank of the group, for signatures and headers.
        wire_to: Returns the wire for tensors to and from another rank; it may be `control`.
        meter: Adds up the seconds of waiting.

    Attributes:
        sizes: As in `Transport`.
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
        self._others = sorted(set(rank_of) - {rank})
        self._wires = {other: wire_to(other) for other in self._others}
        # The pending sends, by wire; those of one wire complete in about the order in which they started.
        self._sends: dict[int, deque[Sending]] = {
            id(wire): deque() for wire in (control, *self._wires.values())
        }
        self._mode = ""
        self._signatures: Sequence[int] = ()  # by micro-batch: the number of its signature
        self._numbers: dict[Hashable, int] = {}
        self._last_sent = b""  # signatures, pickled
        self._outlets: dict[_End, _Outlet] = {}
        self._inlets: dict[_End, _Inlet] = {}
        self._drained: list[_Inlet] = []  # may have fewer receives posted than they should

    def begin(self, actions: Sequence[Action], signatures: Sequence[Hashable] | None, mode: str) -> None:
        """Agree on the signatures [1] and post the first receives."""
        self._mode = mode
        self._agree_on(signatures)
        self._drained = []
        for structures in self._structures():
            structures.begin()  # [3]
        for inlet in self._inlets.values():
            inlet.expected.clear()
        for action in actions:
            if action.kind in RECEIVES and self._rank_of[action.peer] in self._wires:
                self._inlet(action).expected.append(action)
        for inlet in self._inlets.values():
            self._post(inlet)

    def send(self, action: Action, tensors: Sequence[Tensor], nest: TreeSpec) -> None:
        """Start to send, with a header unless the receiver takes the structure for granted [2].

        Raises:
            TrainingError: It takes another one for granted, which all earlier messages have had.
        """
        outlet = self._outlet(action)
        key, structure = self._key(action), spec_of(list(tensors), nest)
        known = outlet.structures.known.get(key)
        if known is None:
            outlet.structures.see(key, structure)
            self._note_size(action, structure)
            self._send_control(pickle.dumps(structure), outlet.target, outlet.tag)
        elif known != structure:
            raise TrainingError(
                f"the last layer of stage {action.stage} handed on {known.tensors} for every input of this "
                f"shape so far, and now {structure.tensors} ({action}). The ranks rely on it after {TRIALS} "
                "messages: let the layer vary its shape from the start, or pad to one shape"
            )
        outlet.sends.append(outlet.wire.send(tensors, outlet.target, outlet.tag))
        self._post_drained()

    def receive(self, action: Action) -> tuple[list[Tensor], TreeSpec]:
        """Wait for a message; the next receives of its channel are posted after the next send.

        The rank that waits for that send should not wait for the posting too; one receive is posted until
        then.
        """
        self._post_drained()
        inlet = self._inlet(action)
        if not inlet.posted:
            structure = inlet.structures.known.get(self._key(action))
            if structure is None:
                structure = pickle.loads(self._receive_bytes(inlet.source, inlet.tag))
                inlet.structures.see(self._key(action), structure)
            self._post_next(inlet, structure)
        shape, arrival = inlet.posted.popleft()
        self._meter.wait(arrival.done, expects_wakeup=arrival.expects_wakeup)
        self._drained.append(inlet)
        tensors = arrival.tensors()
        for tensor, spec in zip(tensors, shape.tensors, strict=True):
            tensor.requires_grad_(spec.requires_grad)
        return tensors, shape.nest

    def progress(self) -> None:
        """Forget the sends that are complete; asking lets the wires progress all messages."""
        for sends in self._sends.values():
            while sends and sends[0].done():
                sends.popleft()

    def finish(self) -> None:
        """Wait until every send is complete."""

        def all_done() -> bool:
            self.progress()
            return not any(self._sends.values())

        self._meter.wait(all_done)

    def _structures(self) -> Iterator[Structures]:
        """Yield those of every channel's end here."""
        for outlet in self._outlets.values():
            yield outlet.structures
        for inlet in self._inlets.values():
            yield inlet.structures

    def _agree_on(self, signatures: Sequence[Hashable] | None) -> None:
        """Send or receive the signatures; an empty message means those of the previous step."""
        if signatures is None:
            message = self._receive_bytes(self._rank_of[0], _SIGNATURES_TAG)
        else:
            sent, self._last_sent = self._last_sent, pickle.dumps(tuple(signatures))
            message = b"" if sent == self._last_sent else self._last_sent
            for other in self._others:
                self._send_control(message, other, _SIGNATURES_TAG)
        if message:
            numbers = self._numbers
            self._signatures = [numbers.setdefault(each, len(numbers)) for each in pickle.loads(message)]

    def _outlet(self, action: Action) -> _Outlet:
        end = action.kind, action.stage, action.peer
        outlet = self._outlets.get(end)
        if outlet is None:
            target = self._rank_of[action.peer]
            wire = self._wires[target]
            tag = self._tag(RECEIVE_OF[action.kind], action.stage, action.peer)
            outlet = self._outlets[end] = _Outlet(wire, self._sends[id(wire)], target, tag)
        return outlet

    def _inlet(self, action: Action) -> _Inlet:
        end = action.kind, action.stage, action.peer
        inlet = self._inlets.get(end)
        if inlet is None:
            source, tag = self._rank_of[action.peer], self._tag(action.kind, action.peer, action.stage)
            inlet = _Inlet(self._wires[source], source, tag, self._devices[action.stage])
            self._inlets[end] = inlet
        return inlet

    def _note_size(self, action: Action, shape: ActivationSpec) -> None:
        end = action.kind, action.stage, action.peer
        self.sizes[end] = max(shape.bytes, self.sizes.get(end, 0))

    def _send_control(self, data: bytes, target: int, tag: int) -> None:
        self._sends[id(self._control)].append(self._control.send_bytes(data, target, tag))

    def _post_drained(self) -> None:
        while self._drained:
            self._post(self._drained.pop())

    def _post(self, inlet: _Inlet) -> None:
        """Post the channel's next receives whose structures are taken for granted."""
        expected, posted = inlet.expected, inlet.posted
        while expected and len(posted) < _POSTED_AHEAD:
            structure = inlet.structures.known.get(self._key(expected[0]))
            if structure is None:
                return
            self._post_next(inlet, structure)

    def _post_next(self, inlet: _Inlet, structure: ActivationSpec) -> None:
        inlet.expected.popleft()
        arrival = inlet.wire.receive(structure, inlet.device, inlet.source, inlet.tag)
        inlet.posted.append((structure, arrival))

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

    def _key(self, action: Action) -> Key:
        """Return what determines a message's structure within its channel."""
        return self._mode, self._signatures[action.micro_batch] if action.micro_batch >= 0 else -1

    def _tag(self, received_as: Kind, source: int, target: int) -> int:
        """Return a channel's tag, from the receiving end's kind and the stages at both ends."""
        stages = len(self._rank_of)
        return 1 + (_KINDS.index(received_as) * stages + source) * stages + target
