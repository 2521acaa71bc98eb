"""The protocol of a wire, which carries tensors between two ranks.

`Messages` makes only four kinds of call:

    send       start to send tensors
    receive    post a receive for tensors of a known structure
    done       ask a send or a receive whether it is complete
    probe      look for a message of unknown length; only the control wire is asked

A pair of ranks may have a wire of its own for tensors. Control messages always take the control wire.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from trainer.activation import ActivationSpec


class Sending(Protocol):
    """A pending send; it keeps alive the memory that the wire still reads."""

    def done(self) -> bool:
        """Return whether it is complete; asking lets the wire progress its messages."""


class Arrival(Protocol):
    """A posted receive."""

    @property
    def expects_wakeup(self) -> bool:
        """Return whether the full message has arrived when the sender wakes this rank.

        If so, the receiver may sleep until it is woken; otherwise it polls.
        """

    def done(self) -> bool:
        """Return whether it is complete; asking lets the wire progress its messages."""

    def tensors(self) -> list[Tensor]:
        """Return the received tensors on the receiving stage's device, once the receive is complete."""


class Wire(Protocol):
    """Carries tensors to and from some ranks of a group.

    Messages between two ranks that have the same tag arrive in the order in which they were sent; messages
    with different tags may overtake one another. Both calls return at once. They must not block, as the peer
    may be waiting for this rank's next action.
    """

    def send(self, tensors: Sequence[Tensor], target: int, tag: int) -> Sending:
        """Start to send tensors, and wake the receiver where that is possible.

        Args:
            tensors: One message, on any device; they do not change afterwards.
            target: A rank of the group.
            tag: The tag that the receiver uses too, from 0.
        """

    def receive(self, structure: ActivationSpec, device: torch.device, source: int, tag: int) -> Arrival:
        """Post a receive; at most two are posted at a time for each source and tag.

        Args:
            structure: The structure of the message.
            device: Where its tensors are needed.
            source: A rank of the group.
            tag: The tag that the sender used.
        """


class ControlWire(Wire, Protocol):
    """Also carries small messages whose length the receiver does not know."""

    def send_bytes(self, data: bytes, target: int, tag: int) -> Sending:
        """Start to send bytes, in order with this wire's tensors, and wake the receiver."""

    def probe(self, source: int, tag: int) -> bytes | None:
        """Return the next message with this tag if it has arrived, else None."""
