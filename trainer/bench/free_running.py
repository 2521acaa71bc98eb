"""A transport that answers at once: what remains of a step when no rank ever waits for a message."""

from collections.abc import Hashable, Sequence

from torch import Tensor

from trainer.activation import TreeSpec
from trainer.pipeline.transport import Transport
from trainer.schedule.actions import Action, Kind


class FreeTransport:
    """Carries messages and remembers them; once free, answers from memory and sends nothing.

    Attributes:
        free: Whether it answers from memory.
        sizes: Those of the true transport.
    """

    def __init__(self, true: Transport) -> None:
        self.free = False
        self.sizes: dict[tuple[Kind, int, int], int] = true.sizes
        self._true = true
        self._received: dict[Action, tuple[list[Tensor], TreeSpec]] = {}

    def begin(self, actions: Sequence[Action], signatures: Sequence[Hashable] | None, mode: str) -> None:
        """Prepare for true messages."""
        if not self.free:
            self._true.begin(actions, signatures, mode)

    def send(self, action: Action, tensors: Sequence[Tensor], nest: TreeSpec) -> None:
        """Send, unless free."""
        if not self.free:
            self._true.send(action, tensors, nest)

    def receive(self, action: Action) -> tuple[list[Tensor], TreeSpec]:
        """Return what has been sent, or was in the last true step."""
        if not self.free:
            self._received[action] = self._true.receive(action)
        tensors, nest = self._received[action]
        return [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors], nest

    def progress(self) -> None:
        """Let true messages move on."""
        if not self.free:
            self._true.progress()

    def finish(self) -> None:
        """Return when everything sent has left."""
        if not self.free:
            self._true.finish()
