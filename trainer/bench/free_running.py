"""A transport that answers immediately, to measure a step in which no rank waits for a message."""

from collections.abc import Hashable, Sequence

from torch import Tensor

from trainer.activation import TreeSpec
from trainer.pipeline.transport import Transport
from trainer.schedule.actions import Action, Kind


class FreeTransport:
    """Wraps a transport and records its messages; once free, replays them and sends nothing.

    Args:
        real: The transport.

    Attributes:
        free: Whether it replays recorded messages.
        sizes: As of `Transport`.
    """

    def __init__(self, real: Transport) -> None:
        self.free = False
        self.sizes: dict[tuple[Kind, int, int], int] = real.sizes
        self._real = real
        self._received: dict[Action, tuple[list[Tensor], TreeSpec]] = {}

    def begin(self, actions: Sequence[Action], signatures: Sequence[Hashable] | None, mode: str) -> None:
        """Prepare for messages, unless free."""
        if not self.free:
            self._real.begin(actions, signatures, mode)

    def send(self, action: Action, tensors: Sequence[Tensor], nest: TreeSpec) -> None:
        """Send, unless free."""
        if not self.free:
            self._real.send(action, tensors, nest)

    def receive(self, action: Action) -> tuple[list[Tensor], TreeSpec]:
        """Return the next message or, once free, the one received in the last real step."""
        if not self.free:
            self._received[action] = self._real.receive(action)
        tensors, nest = self._received[action]
        return [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors], nest

    def progress(self) -> None:
        """Progress pending messages, unless free."""
        if not self.free:
            self._real.progress()

    def finish(self) -> None:
        """Wait until everything sent has left, unless free."""
        if not self.free:
            self._real.finish()
