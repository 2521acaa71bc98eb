"""Recomputation: a layer keeps less for its backward, and computes the rest again there (Chen et al., 2016).

    none        keeps all that autograd asks for
    selective   keeps what products of matrices, convolutions and attention return: what is slow to compute;
                norms, activation functions, dropout and softmax are computed again
    full        keeps the layer's inputs alone

Of a backward in two parts only `none` and `full` put weight gradients off: a graph that recomputes bit by
bit, as `selective` needs it, gives what it has saved but once.

A forward that runs again gives the same bits: it is seeded as the first time, and running statistics are
summed the first time only.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import flop_registry

T = TypeVar("T")

_again = 0  # how many forwards that run again this process is in


class Recompute(Enum):
    """What a layer's backward computes again."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


def runs_again() -> bool:
    """Return whether the forward under way is one that a backward repeats."""
    return _again > 0


def keeping(recompute: Recompute, forward: Callable[..., T], *inputs: Tensor) -> T:
    """Run a layer's forward so that no more is kept for its backward than `recompute` says.

    Args:
        recompute: What is computed again.
        forward: The forward; called once more within the backward, for the same results.
        inputs: What it takes: they are kept.
    """
    if recompute is Recompute.NONE:
        return forward(*inputs)
    contexts = _selective_contexts if recompute is Recompute.SELECTIVE else _full_contexts
    result: T = checkpoint(
        forward,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,  # the forward seeds itself
        determinism_check="none",
        context_fn=contexts,
    )
    return result


def again(forward: Callable[..., T], *inputs: Tensor) -> T:
    """Run a layer's forward once more, with a plain graph: its backward can be split."""
    with torch.enable_grad(), _running_again(nullcontext()):
        return forward(*inputs)


def is_slow(operation: OpOverload) -> bool:
    """Return whether selective recomputation keeps what an operation returns."""
    return operation.overloadpacket in flop_registry or "attention" in str(operation)


@contextmanager
def _running_again(inner: AbstractContextManager[Any]) -> Iterator[None]:
    global _again  # noqa: PLW0603  (a forward hook has no other way to know)
    _again += 1
    try:
        with inner:
            yield
    finally:
        _again -= 1


def _full_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _running_again(nullcontext())


def _selective_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    first, again = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]
    return first, _running_again(again)


def _policy(_context: Any, operation: OpOverload, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_slow(operation) else CheckpointPolicy.PREFER_RECOMPUTE
