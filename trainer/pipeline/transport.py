"""The transfer of activations and gradients between stages; the engine knows only this protocol."""

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from trainer.activation import TreeSpec
from trainer.schedule.actions import RECEIVE_OF, Action, Kind

Channel = tuple[Kind, int, int]  # the receiving end's kind, source stage, target stage


def channel_of(action: Action) -> Channel:
    """Return the channel of a send or a receive; both ends of a message have the same one."""
    if action.kind in RECEIVE_OF:
        return RECEIVE_OF[action.kind], action.stage, action.peer
    return action.kind, action.peer, action.stage


class Transport(Protocol):
    """Carries flattened activations along channels; within a channel they arrive in order.

    Attributes:
        sizes: The size in bytes of the largest message sent so far, by kind, stage and peer of the send.
    """

    sizes: dict[tuple[Kind, int, int], int]

    def begin(self, actions: Sequence[Action], signatures: Sequence[Hashable] | None, mode: str) -> None:
        """Prepare for a schedule's messages and post the first receives.

        Args:
            actions: This rank's list.
            signatures: For every micro-batch, what determines the shapes of its activations; None on ranks
                that do not hold the first stage.
            mode: "training" or "inference", which shapes also depend on.
        """

    def send(self, action: Action, tensors: Sequence[Tensor], nest: TreeSpec) -> None:
        """Start to send; the tensors must not change afterwards."""

    def receive(self, action: Action) -> tuple[list[Tensor], TreeSpec]:
        """Return the tensors of the matching send, on the receiving stage's device."""

    def progress(self) -> None:
        """Progress pending messages; takes about a microsecond."""

    def finish(self) -> None:
        """Wait until every send is complete."""


class LocalTransport:
    """Passes tensors between stages of one process, moved to the receiving stage's device."""

    def __init__(self, devices: Mapping[int, torch.device]) -> None:
        self.sizes: dict[tuple[Kind, int, int], int] = {}  # nothing leaves the process
        self._devices = devices
        self._queues: dict[Channel, deque[tuple[list[Tensor], TreeSpec]]] = {}

    def begin(self, actions: Sequence[Action], signatures: Sequence[Hashable] | None, mode: str) -> None:
        """Do nothing: no preparation is needed."""

    def send(self, action: Action, tensors: Sequence[Tensor], nest: TreeSpec) -> None:
        """Append the tensors to the channel's queue."""
        device = self._devices[action.peer]
        moved = [tensor.to(device, non_blocking=True) for tensor in tensors]
        self._queues.setdefault(channel_of(action), deque()).append((moved, nest))

    def receive(self, action: Action) -> tuple[list[Tensor], TreeSpec]:
        """Remove and return the oldest entry of the channel's queue."""
        return self._queues[channel_of(action)].popleft()

    def progress(self) -> None:
        """Do nothing: a message arrives as soon as it is sent."""

    def finish(self) -> None:
        """Do nothing: a send is complete at once."""
