"""How many bytes the tensors that a program makes hold at a moment, counted as it runs."""

from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the memory that is made within this context, on any device, the meta device too.

    Tensors that share memory count once. What was there before, and views of it, do not count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def bytes(self) -> int:
        """Return how much of it is still held."""
        alive = {key: made for key, made in self._made.items() if not made[0].expired()}  # type: ignore[no-untyped-call]
        self._made = alive
        return sum(size for _, size in self._made.values())

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a kernel, and note the memory that it makes."""
        result = func(*args, **(kwargs or {}))
        given = {memory_of(tensor) for tensor in tensors_in((args, kwargs))}
        for tensor in tensors_in(result):
            key = memory_of(tensor)
            if key not in given and key not in self._made:
                storage = tensor.untyped_storage()
                # The weak reference also keeps the address from being used again.
                self._made[key] = StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]
        return result


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors of any nest of tuples, lists and dicts."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def memory_of(tensor: Tensor) -> int:
    """Return what tensors that share memory have in common; a meta tensor has no address."""
    return int(tensor.untyped_storage()._cdata)
