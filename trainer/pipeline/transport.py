"""How activations and gradients reach another stage; the engine knows nothing but this protocol."""

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from trainer.activation import TreeSpec
from trainer.schedule.actions import RECEIVE_OF, Action, Kind

Channel = tuple[Kind, int, int]  # what the receiving end does, source stage, target stage


def channel_of(action: Action) -> Channel:
    """Return the channel of a send or a receive: the same for both ends of a message."""
    if action.kind in RECEIVE_OF:
        return RECEIVE_OF[action.kind], action.stage, action.peer
    return action.kind, action.peer, action.stage


class Transport(Protocol):
    """Carries flattened activations along channels; every channel keeps its order.

    Attributes:
        sizes: The bytes of the largest message that was sent, by the send's kind, stage and peer.
    """

    sizes: dict[tuple[Kind, int, int], int]

    def begin(self, actions: Sequence[Action], signatures: Sequence[Hashable] | None, mode: str) -> None:
        """Prepare for a schedule's messages, and post the first receives.

        Args:
            actions: What this rank will do.
            signatures: For every micro-batch, what the shapes of its activations follow from; None on
                ranks that do not hold the first stage.
            mode: What else shapes follow from: "training" or "inference".
        """

    def send(self, action: Action, tensors: Sequence[Tensor], nest: TreeSpec) -> None:
        """Start to send; the tensors must not change any more."""

    def receive(self, action: Action) -> tuple[list[Tensor], TreeSpec]:
        """Return what the matching send sent, on the receiving stage's device."""

    def progress(self) -> None:
        """Let messages under way move on; costs about a microsecond."""

    def finish(self) -> None:
        """Return when everything sent has left."""


class LocalTransport:
    """Between stages of one process: hands the tensors over, moved to the receiving stage's device."""

    def __init__(self, devices: Mapping[int, torch.device]) -> None:
        self.sizes: dict[tuple[Kind, int, int], int] = {}  # what stays in a process is no message
        self._devices = devices
        self._queues: dict[Channel, deque[tuple[list[Tensor], TreeSpec]]] = {}

    def begin(self, actions: Sequence[Action], signatures: Sequence[Hashable] | None, mode: str) -> None:
        """Do nothing: there is nothing to prepare."""

    def send(self, action: Action, tensors: Sequence[Tensor], nest: TreeSpec) -> None:
        """Put the tensors into the channel's queue."""
        device = self._devices[action.peer]
        moved = [tensor.to(device, non_blocking=True) for tensor in tensors]
        self._queues.setdefault(channel_of(action), deque()).append((moved, nest))

    def receive(self, action: Action) -> tuple[list[Tensor], TreeSpec]:
        """Take the oldest out of the channel's queue."""
        return self._queues[channel_of(action)].popleft()

    def progress(self) -> None:
        """Do nothing: a message has arrived when it is sent."""

    def finish(self) -> None:
        """Do nothing: a message has left when it is sent."""
