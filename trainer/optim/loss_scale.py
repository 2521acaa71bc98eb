"""Dynamic loss scaling: keeps the small gradients of a float16 backward from becoming zero.

Losses are multiplied by a power of two before the backward, and the averaged float32 gradients divided by it
behind: exactly, so the scale changes nothing but what float16 can hold. A step with a gradient that is not
finite does not count, and the next one has half the scale; after many good steps in a row it doubles
(Micikevicius et al., 2018, "Mixed Precision Training", section 3.2).

Whether a step counts follows from the norm of the whole averaged gradient, which every rank of every stage
and replica has with the same bits. So all of them decide alike, and need not tell each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SMALLEST = 2.0**-14
_GOOD_STEPS = 2000  # until it doubles


@dataclass
class LossScale:
    """The loss scale of a run.

    Attributes:
        value: What losses are multiplied by, a power of two.
        good_steps: How many steps in a row have had finite gradients since it last changed.
    """

    value: float = 2.0**16
    good_steps: int = 0

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        if gradients:  # a rank may have nothing to train
            torch._foreach_mul_(list(gradients), 1 / self.value)

    def accepts(self, norm: float) -> bool:
        """Return whether a step counts whose gradient has this norm; adapt the scale for the next one.

        Raises:
            OverflowError: The gradient is not finite however small the scale is.
        """
        finite = math.isfinite(norm)
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good_steps == _GOOD_STEPS:
            self.value, self.good_steps = self.value * 2, 0
        if self.value < _SMALLEST:
            raise OverflowError(
                f"no step has had a finite gradient with loss scales down to {self.value * 2:g}: the model "
                "overflows float16 by itself; use precision=bf16, or a smaller learning rate"
            )
        return finite
