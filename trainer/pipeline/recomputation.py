"""Recomputation: a layer saves less for its backward, which recomputes the rest (Chen et al., 2016).

    none        saves everything that autograd asks for
    selective   saves the results of matrix products, convolutions and attention, which are slow to compute;
                recomputes norms, activation functions, dropout and softmax
    full        saves only the layer's inputs

A recomputed forward gives the same bits: it is seeded as the first one was, and only the first one adds to
running statistics.
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
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from trainer.pipeline.kernel_mode import KernelMode
from trainer.pipeline.tensor_bytes import memory_of, tensors_in, written_by
from trainer.seeds import default_generator

T = TypeVar("T")

_depth = 0  # the number of recomputed forwards that this process is inside


class Recompute(Enum):
    """What a layer's backward recomputes."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


def recomputing() -> bool:
    """Return whether the current forward runs within a backward, to recompute."""
    return _depth > 0


class Repeatable(Generic[T]):
    """A layer's forward, which saves for its backward what `recompute` allows.

    Args:
        recompute: What the backward recomputes; not NONE.
        forward: The forward. The backward calls it once more, and it must return the same results.
        inputs: Its inputs, which are saved.
    """

    def __init__(self, recompute: Recompute, forward: Callable[..., T], *inputs: Tensor) -> None:
        self._forward = forward
        self._inputs = inputs
        self._first: AbstractContextManager[Any] = nullcontext()
        self._second: AbstractContextManager[Any] = nullcontext()
        if recompute is Recompute.SELECTIVE:
            saved: deque[_Result] = deque()
            self._first, self._second = _SaveResults(saved), _ReuseResults(saved)

    def run(self) -> T:
        """Run the forward for the first time; a full backward from its results recomputes by itself."""
        result: T = checkpoint(
            self._forward,
            *self._inputs,
            use_reentrant=False,
            preserve_rng_state=False,  # the forward seeds itself
            determinism_check="none",
            # Stopping at the last saved tensor would skip what fills tensors later (the noise of nn.RReLU).
            early_stop=False,
            context_fn=lambda: (self._first, _recomputing(self._second)),
        )
        return result

    def run_without_backward(self) -> T:
        """Run the forward for the first time, and save the same, for results that have no backward."""

        def discard(_: Any) -> Any:
            return None

        with self._first, torch.autograd.graph.saved_tensors_hooks(discard, discard):
            return self._forward(*self._inputs)

    def recompute(self) -> T:
        """Run the forward for the second time, with a plain graph, whose backward can be split."""
        with torch.enable_grad(), _recomputing(self._second):
            return self._forward(*self._inputs)


def is_slow(operation: OpOverload) -> bool:
    """Return whether selective recomputation saves an operation's results."""
    slow = operation.overloadpacket in flop_registry or "attention" in str(operation)
    return slow and not operation._schema.is_mutable  # an out= variant must write into the given tensor anew


@contextmanager
def _recomputing(inner: AbstractContextManager[Any]) -> Iterator[None]:
    global _depth  # noqa: PLW0603  (a forward hook has no other way to know)
    _depth += 1
    try:
        with inner:
            yield
    finally:
        _depth -= 1


@dataclass
class _Result:
    """The results of a slow operation: a tensor, or a tuple that contains some.

    Attributes:
        operation: The operation.
        values: Its results.
        generator: The generator that it draws from, and the generator's state afterwards; None if it draws
            nothing. A result that is reused must leave the generator where the operation left it, or whatever
            draws next would draw something else (attention with dropout on a GPU, then dropout).
    """

    operation: OpOverload
    values: Any
    generator: tuple[torch.Generator, Tensor] | None = None


class _SaveResults(KernelMode):
    """Saves the results of slow operations.

    A layer may overwrite a saved result: `nn.ReLU(inplace=True)` after a convolution does, and an LSTM
    writes into its gates. The result is copied first. (torch's own selective checkpoint raises an error.)
    """

    def __init__(self, saved: deque[_Result]) -> None:
        super().__init__()
        self._saved = saved
        self._by_memory: dict[int, _Result] = {}

    def run(self, kernel: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a kernel, and save its results if it is slow."""
        for tensor in written_by(kernel, args, kwargs):
            result = self._by_memory.pop(memory_of(tensor), None)
            if result is not None:
                result.values = tree_map_only(Tensor, torch.clone, result.values)
        returned = kernel(*args, **kwargs)
        if is_slow(kernel):
            values = tree_map_only(Tensor, torch.detach, returned)
            result = _Result(kernel, values, _generator_after(kernel, args, kwargs))
            self._saved.append(result)
            self._by_memory.update((memory_of(tensor), result) for tensor in tensors_in(returned))
        return returned


class _ReuseResults(KernelMode):
    """Returns saved results instead of running slow operations, each result once."""

    def __init__(self, saved: deque[_Result]) -> None:
        super().__init__()
        self._saved = saved

    def run(self, kernel: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a kernel, unless it is slow."""
        if not is_slow(kernel):
            return kernel(*args, **kwargs)
        first = self._saved.popleft() if self._saved else None
        if first is None or first.operation is not kernel:
            ran = first.operation if first else "nothing more"
            raise RuntimeError(
                f"a layer's forward must repeat its operations when its backward recomputes it, "
                f"but it ran {kernel} where it first ran {ran}"
            )
        if first.generator is not None:
            generator, state = first.generator
            generator.set_state(state)
        return first.values


def _generator_after(
    operation: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Generator, Tensor] | None:
    """Return the generator that an operation has drawn from, and its state; None if it draws nothing.

    On a GPU the state is a seed and an offset, which torch keeps on the host: nothing waits for the device.
    """
    if torch.Tag.nondeterministic_seeded not in operation.tags:
        return None
    given = kwargs.get("generator")
    if given is None:
        device = next((tensor.device for tensor in tensors_in((args, kwargs))), torch.device("cpu"))
        if device.type not in {"cpu", "cuda"}:  # the meta device draws nothing
            return None
        given = default_generator(device)
    return given, given.get_state()
