"""What carries tensors between two ranks: a wire.

Four calls are all that `Messages` asks for:

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
    """A send under way; it keeps alive whatever memory the wire still reads."""

    def done(self) -> bool:
        """Return whether it is complete; asking lets the wire's messages move on."""


class Arrival(Protocol):
    """A receive that is posted."""

    @property
    def expects_wakeup(self) -> bool:
        """Return whether the whole message is here when the sender wakes this rank.

        Then the receiver may sleep until it is woken; else it polls.
        """

    def done(self) -> bool:
        """Return whether it is complete; asking lets the wire's messages move on."""

    def tensors(self) -> list[Tensor]:
        """Return what came, on the receiving stage's device, once it is complete."""


class Wire(Protocol):
    """Carries tensors to and from some ranks of a group.

    Messages between two ranks that have the same tag arrive in the order in which they were sent; messages
    with different tags may overtake one another. Both calls return at once. A wire may block neither, as the
    peer may be waiting for what this rank does next.
    """

    def send(self, tensors: Sequence[Tensor], target: int, tag: int) -> Sending:
        """Start to send tensors, and wake the receiver where that is possible.

        Args:
            tensors: One message, on any device; their numbers do not change any more.
            target: A rank of the group.
            tag: What the receiver names too, from 0.
        """

    def receive(self, structure: ActivationSpec, device: torch.device, source: int, tag: int) -> Arrival:
        """Post a receive; at most two are posted at a time for each source and tag.

        Args:
            structure: That of the message.
            device: Where its tensors are needed.
            source: A rank of the group.
            tag: What the sender named.
        """


class ControlWire(Wire, Protocol):
    """Also carries small messages whose length the receiver does not know."""

    def send_bytes(self, data: bytes, target: int, tag: int) -> Sending:
        """Start to send bytes, in order with this wire's tensors, and wake the receiver."""

    def probe(self, source: int, tag: int) -> bytes | None:
        """Return the next message with this tag if it has come, whatever its length, else None."""
