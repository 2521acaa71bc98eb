"""Lets custom code write into its inputs, as `x += 1` and `F.relu_(x)` do, although others still need them.

A layer's inputs are leaves of its own graph. They share their memory with the outputs of the layer before,
and a forward that is recomputed takes them again. So code that writes into them gets copies:

    inputs that need gradients    autograd refuses the write; the code runs again, with copies from then on
    other inputs                  copied for the first call, which shows whether it writes into them

Code that writes into nothing gets no copies after its first call.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# How autograd's complaint about a write into a leaf, or into a view of one, begins and ends.
_WRITES_INTO_LEAF = ("leaf Variable that requires grad", "used in an in-place operation")


class WritableInputs:
    """Calls one piece of custom code, with copies of its inputs if it writes into them.

    Args:
        writes: Whether it is known to.
    """

    def __init__(self, *, writes: bool = False) -> None:
        # By whether gradients are enabled, then by whether the inputs need them; missing: not known yet.
        self._writes: dict[tuple[bool, bool], bool] = {(True, True): True} if writes else {}

    def call(
        self,
        function: Callable[[list[Tensor]], T],
        inputs: Sequence[Tensor],
        undo: Callable[[], None] = lambda: None,
    ) -> T:
        """Return what the function returns.

        Args:
            function: Takes the inputs.
            inputs: The inputs.
            undo: Called before the function runs again because it wrote into an input.

        Raises:
            RuntimeError: The function has written, for the first time, into an input that autograd does not
                protect, after calls that did not.
        """
        given = [tensor.clone() if self._copies(tensor) else tensor for tensor in inputs]
        before = [tensor._version for tensor in given]
        try:
            result = function(given)
        except RuntimeError as error:
            if self._writes.get((True, True)) or not all(words in str(error) for words in _WRITES_INTO_LEAF):
                raise
            self._writes[True, True] = True
            undo()
            return self.call(function, inputs)
        for tensor, used, version in zip(inputs, given, before, strict=True):
            self._note(tensor, used, writes=used._version != version)
        return result

    def _copies(self, tensor: Tensor) -> bool:
        kind = torch.is_grad_enabled(), tensor.requires_grad
        return self._writes.get(kind, not all(kind))

    def _note(self, tensor: Tensor, used: Tensor, *, writes: bool) -> None:
        if writes and used is tensor:
            raise RuntimeError(
                "it wrote into its input (x += ..., x[...] = ..., F.relu_(x)), but had not done so in its "
                "first forward: write into a copy, x = x.clone()"
            )
        kind = torch.is_grad_enabled(), tensor.requires_grad
        if not all(kind):
            self._writes[kind] = writes or self._writes.get(kind, False)
