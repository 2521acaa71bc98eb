"""Buffers that a layer's forward changes: router loads, moving means, the vectors of spectral norm.

A pipeline runs other micro-batches between a forward and its backward, and a backward that recomputes runs
the forward once more. So for a buffer that changes

    a forward             gets a copy and changes that: what autograd has saved of the old one stays as it was
    a recomputed forward  finds the values that the first one found, and leaves the present ones unchanged

Which buffers change is seen when they first do. Buffers that do not change cost a look at their versions.
(Running statistics of batch normalisation do not change in a forward: see `statistics.py`.)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn


class _Slot(NamedTuple):
    """Where a buffer is: its module, its name there, and its name in the layer."""

    module: nn.Module
    name: str
    path: str


class _Copies:
    """Copies of tensors, one of each: modules that share a buffer share its copy."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, tensor: Tensor | None) -> Tensor | None:
        """Return the copy of a tensor."""
        if tensor is None:
            return None
        if id(tensor) not in self._made:
            self._made[id(tensor)] = tensor, tensor.detach().clone()
        return self._made[id(tensor)][1]


Found = list[tuple[_Slot, Tensor | None]]  # buffers as a forward found them

_SMALL = 1 << 20  # bytes of copies that a layer may keep for good
_FORWARDS = 8  # after which larger ones are dropped


@dataclass
class _Watched:
    """A buffer that has not changed in a forward so far.

    Attributes:
        slot: Where it is.
        buffer: The tensor; None before the layer sets it.
        version: Its version.
        copy: Its values, if they may be needed.
    """

    slot: _Slot
    buffer: Tensor | None
    version: int
    copy: Tensor | None

    @classmethod
    def of(cls, slot: _Slot, copies: _Copies | None) -> "_Watched":
        """Watch a buffer from now on."""
        buffer = _get(slot)
        if buffer is None:
            return cls(slot, None, 0, None)
        return cls(slot, buffer, buffer._version, None if copies is None else copies.of(buffer))

    def changed(self) -> bool:
        """Return whether the buffer has changed, or been replaced."""
        buffer = _get(self.slot)
        return buffer is not self.buffer or (buffer is not None and buffer._version != self.version)


class ForwardBuffers:
    """The buffers of one layer.

    Args:
        module: The layer.
        recomputed: Whether its forward may run again.

    Attributes:
        changes_weights: Whether a forward has changed a parameter, as `nn.Embedding(max_norm=...)` does.
    """

    def __init__(self, module: nn.Module, *, recomputed: bool) -> None:
        self.changes_weights = False
        self._recomputed = recomputed
        self._weights = list(module.parameters())
        self._slots = [
            _Slot(each, name, f"{path}.{name}".lstrip("."))
            for path, each in module.named_modules()
            for name in each._buffers
        ]
        self._watched: list[_Watched] | None = None
        self._changing: list[_Slot] = []
        self._at_step: Found = []
        self._keeps_copies = True
        self._forwards = 0
        self._versions = 0

    @property
    def changing(self) -> list[str]:
        """Return the names of the buffers that forwards have changed, of those that checkpoints save."""
        saved = [slot for slot in self._changing if slot.name not in slot.module._non_persistent_buffers_set]
        return [slot.path for slot in saved]

    def begin_step(self) -> None:
        """Note the buffers that forwards change; they will not change these tensors."""
        self._at_step = [(slot, _get(slot)) for slot in self._changing]

    def forget_step(self) -> None:
        """Return the buffers to what they were when the step began."""
        for slot, buffer in self._at_step:
            _set(slot, buffer)

    def before(self) -> Found:
        """Prepare for a first forward; return the buffers that it will change, as it finds them."""
        if self._watched is None:
            copies = _Copies()
            self._watched = [_Watched.of(slot, copies) for slot in self._slots]
        anew = _Copies() if self._keeps_copies else None
        for number, watched in enumerate(self._watched):
            if watched.changed():  # between forwards: a checkpoint was loaded, statistics moved
                self._watched[number] = _Watched.of(watched.slot, anew)
        found = [(slot, _get(slot)) for slot in self._changing]
        _give_copies(found)
        self._versions = _versions(self._weights)
        return found

    def undo(self, found: Found) -> None:
        """Return the buffers to what `before` found, for a forward that starts again."""
        changed = [watched for watched in self._watched or [] if watched.changed()]
        known = [each for each in changed if each.buffer is None or each.copy is not None]
        _give_copies([*found, *((each.slot, each.copy) for each in known)])

    def after(self, found: Found) -> None:
        """Look at what a first forward has changed; add to `found` what it changed for the first time.

        Raises:
            RuntimeError: It changed a large buffer only now, and the forward must run again.
        """
        self.changes_weights |= self._versions != _versions(self._weights)
        self._forwards += 1
        assert self._watched is not None
        for watched in [each for each in self._watched if each.changed()]:
            if self._recomputed and watched.buffer is not None and watched.copy is None:
                raise RuntimeError(
                    f"its forward changed the buffer {watched.slot.path!r} for the first time after "
                    f"{self._forwards - 1} forwards, and its backward has to run the forward again: "
                    "use memory.recompute=none"
                )
            self._watched.remove(watched)
            self._changing.append(watched.slot)
            for noted in (found, self._at_step):
                noted.append((watched.slot, watched.copy))
        if self._forwards == _FORWARDS:
            self._drop_large_copies()

    @contextmanager
    def as_found(self, found: Found) -> Iterator[None]:
        """Let a forward find what the first one found; discard its changes, of weights too."""
        present = [(slot, _get(slot)) for slot, _ in found]
        weights = [weight.detach().clone() for weight in self._weights] if self.changes_weights else []
        _give_copies(found)
        try:
            yield
        finally:
            for slot, buffer in present:
                _set(slot, buffer)
            for weight, values in zip(self._weights, weights, strict=False):
                weight.data.copy_(values)

    def _drop_large_copies(self) -> None:
        watched = self._watched or []
        if sum(each.copy.nbytes for each in watched if each.copy is not None) > _SMALL:
            self._keeps_copies = False
            for each in watched:
                each.copy = None


def _give_copies(found: Found) -> None:
    copies = _Copies()
    for slot, buffer in found:
        _set(slot, copies.of(buffer))


def _versions(tensors: Sequence[Tensor]) -> int:
    return sum(int(tensor._version) for tensor in tensors)


def _get(slot: _Slot) -> Tensor | None:
    return slot.module._buffers.get(slot.name)


def _set(slot: _Slot, buffer: Tensor | None) -> None:
    slot.module._buffers[slot.name] = buffer
