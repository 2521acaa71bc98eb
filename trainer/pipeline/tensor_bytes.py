"""The bytes of tensors: how many a program holds while it runs, and what they are."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from trainer.pipeline.kernel_mode import KernelMode


class LiveBytes(KernelMode):
    """Counts the memory allocated within this context, on any device, the meta device included.

    Tensors that share memory count once. Memory allocated earlier does not count, nor do views of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._allocated: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def bytes(self) -> int:
        """Return how much of it is still held."""
        alive = {key: made for key, made in self._allocated.items() if not made[0].expired()}  # type: ignore[no-untyped-call]
        self._allocated = alive
        return sum(size for _, size in self._allocated.values())

    def run(self, kernel: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a kernel, and note the memory that it allocates."""
        result = kernel(*args, **kwargs)
        given = {memory_of(tensor) for tensor in tensors_in((args, kwargs))}
        for tensor in tensors_in(result):
            key = memory_of(tensor)
            if key not in given and key not in self._allocated:
                storage = tensor.untyped_storage()
                # The weak reference also prevents the address from being reused.
                self._allocated[key] = StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]
        return result


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dicts."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def written_by(kernel: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that a kernel writes into."""
    written = _written_places(kernel)
    if not written:  # as of nearly all
        return []
    return tensors_in([args[place] if place < len(args) else kwargs.get(name) for place, name in written])


@cache
def _written_places(kernel: OpOverload) -> list[tuple[int, str]]:
    """Return the places and names of the arguments that a kernel writes into."""
    return [(i, argument.name) for i, argument in enumerate(kernel._schema.arguments) if argument.is_write]


def memory_of(tensor: Tensor) -> int:
    """Return an identifier that only tensors sharing memory have in common; meta tensors have no address."""
    return int(tensor.untyped_storage()._cdata)


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_integers(tensor: Tensor) -> Tensor:
    """Return a tensor's bits as integers: a NaN equals itself there, and 0 differs from -0."""
    plain = tensor.detach()
    real = torch.view_as_real(plain) if plain.is_complex() else plain
    return real.contiguous().view(_INTEGERS[real.element_size()])


def bytes_of(tensor: Tensor) -> Any:
    """Return a tensor's bytes on the host, in row-major order."""
    return as_integers(tensor.cpu()).reshape(-1).view(torch.uint8).numpy().data
