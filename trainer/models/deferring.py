"""How a layer's backward puts off weight gradients, for schedules that split backwards.

A layer need not know the schedule: `defer` says whether the current backward is split.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

from torch import Tensor, nn

# Computes a gradient; None if it turns out that there is none.
Gradient: TypeAlias = Callable[[], Tensor | None]
# Parameters and the functions that compute their gradients, an entry for each use, in backward order.
Deferred: TypeAlias = list[tuple[nn.Parameter, Gradient]]

_collecting: list[Deferred] = []  # a stack of lists for deferred gradients; empty outside split backwards


def defer(parameter: nn.Parameter, gradient: Callable[[], Tensor]) -> bool:
    """Defer a parameter's gradient to the second part of the current backward, if it is split.

    For the `backward` of a custom `torch.autograd.Function`:

        x, weight = ctx.saved_tensors
        later = defer(ctx.weight, lambda: product(gradient, x))
        return gradient_of_x, None if later else product(gradient, x)

    Args:
        parameter: The parameter; either all its uses defer their gradients, or none does.
        gradient: Returns the gradient of this use, a new tensor in the parameter's shape; called with
            gradients disabled. Another type is converted to the parameter's, as autograd does.

    Returns:
        Whether it is deferred: False in a full backward, where autograd adds gradients.
    """
    if not _collecting:
        return False
    _collecting[-1].append((parameter, partial(converted, gradient, parameter)))
    return True


@contextmanager
def collecting(deferred: Deferred) -> Iterator[None]:
    """Collect into a list what backwards within this context defer."""
    _collecting.append(deferred)
    try:
        yield
    finally:
        _collecting.pop()


def converted(make: Gradient, leaf: Tensor) -> Tensor | None:
    """Return a gradient in the type of its leaf, as autograd adds it."""
    gradient = make()
    return None if gradient is None else gradient.to(leaf)
