"""Recomputation: a layer keeps less for its backward, and computes the rest again there (Chen et al., 2016).

    none        keeps all that autograd asks for
    selective   keeps what products of matrices, convolutions and attention return: what is slow to compute;
                norms, activation functions, dropout and softmax are computed again
    full        keeps the layer's inputs alone

A forward that runs again gives the same bits: it is seeded as the first time, and running statistics are
summed the first time only.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from trainer.pipeline.tensor_bytes import memory_of, tensors_in

T = TypeVar("T")

_again = 0  # how many forwards that run again this process is in


class Recompute(Enum):
    """What a layer's backward computes again."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


def recomputing() -> bool:
    """Return whether the forward under way is one that a backward repeats."""
    return _again > 0


class Repeatable(Generic[T]):
    """A layer's forward that keeps no more for its backward than `recompute` says.

    Args:
        recompute: What is computed again; something is.
        forward: The forward; called once more within the backward, for the same results.
        inputs: What it takes: they are kept.
    """

    def __init__(self, recompute: Recompute, forward: Callable[..., T], *inputs: Tensor) -> None:
        self._forward = forward
        self._inputs = inputs
        self._first: AbstractContextManager[Any] = nullcontext()
        self._second: AbstractContextManager[Any] = nullcontext()
        if recompute is Recompute.SELECTIVE:
            kept: deque[_Result] = deque()
            self._first, self._second = _Keep(kept), _Give(kept)

    def run(self) -> T:
        """Run it the first time; a whole backward from what it returns runs it again by itself."""
        result: T = checkpoint(
            self._forward,
            *self._inputs,
            use_reentrant=False,
            preserve_rng_state=False,  # the forward seeds itself
            determinism_check="none",
            context_fn=lambda: (self._first, _recomputing(self._second)),
        )
        return result

    def recompute(self) -> T:
        """Run it the second time, with a plain graph: the backward of that one can be split."""
        with torch.enable_grad(), _recomputing(self._second):
            return self._forward(*self._inputs)


def is_slow(operation: OpOverload) -> bool:
    """Return whether selective recomputation keeps what an operation returns."""
    slow = operation.overloadpacket in flop_registry or "attention" in str(operation)
    return slow and not operation._schema.is_mutable  # who asked it to write somewhere will look there


@contextmanager
def _recomputing(inner: AbstractContextManager[Any]) -> Iterator[None]:
    global _again  # noqa: PLW0603  (a forward hook has no other way to know)
    _again += 1
    try:
        with inner:
            yield
    finally:
        _again -= 1


@dataclass
class _Result:
    """What a slow operation of a forward has returned: a tensor, or a tuple with some."""

    operation: OpOverload
    values: Any


class _Keep(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps what slow operations return, as they return it.

    A layer may write into it, as `nn.ReLU(inplace=True)` behind a convolution does, or an LSTM into its
    gates. Then it is copied before: torch's own selective checkpoint gives up there.
    """

    def __init__(self, kept: deque[_Result]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept = kept
        self._in: dict[int, _Result] = {}  # by the memory that it is in

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a kernel, and keep what it returns if it is slow."""
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for tensor in _written(func, args, kwargs):
                result = self._in.pop(memory_of(tensor), None)
                if result is not None:
                    result.values = tree_map_only(Tensor, torch.clone, result.values)
        returned = func(*args, **kwargs)
        if is_slow(func):
            result = _Result(func, tree_map_only(Tensor, torch.detach, returned))
            self._kept.append(result)
            self._in.update((memory_of(tensor), result) for tensor in tensors_in(returned))
        return returned


class _Give(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives what was kept in place of running slow operations, each once."""

    def __init__(self, kept: deque[_Result]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept = kept

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a kernel, unless it is slow."""
        if not is_slow(func):
            return func(*args, **(kwargs or {}))
        first = self._kept.popleft() if self._kept else None
        if first is None or first.operation is not func:
            did = first.operation if first else "nothing more"
            raise RuntimeError(
                f"a layer's forward, run again for its backward, does {func} where it had done {did}"
            )
        return first.values


def _written(operation: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that an operation writes into."""
    arguments = operation._schema.arguments
    given = {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs
    written = [argument.name for argument in arguments if argument.is_write]
    return tensors_in([given.get(name) for name in written])
