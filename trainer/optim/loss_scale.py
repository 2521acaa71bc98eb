"""Dynamic loss scaling: keeps small gradients of a float16 backward from underflowing to zero.

Losses are multiplied by a power of two before the backward, and the averaged float32 gradients are divided by
it afterwards. Both are exact, so the scale changes only what float16 can represent. A step whose gradient is
not finite is skipped and halves the scale; many good steps in a row double it (Micikevicius et al., 2018,
"Mixed Precision Training", section 3.2).

Whether to skip a step depends on the norm of the complete averaged gradient. Every rank of every stage and
replica has the same bits of it, so all ranks decide alike without communication.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SMALLEST = 2.0**-14
_GOOD_STEPS = 2000  # before the scale doubles


@dataclass
class LossScale:
    """The loss scale of a run.

    Attributes:
        value: The factor of losses, a power of two.
        good_steps: The number of consecutive steps with finite gradients since the factor last changed.
    """

    value: float = 2.0**16
    good_steps: int = 0

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        if gradients:  # a rank may have nothing to train
            torch._foreach_mul_(list(gradients), 1 / self.value)

    def accepts(self, norm: float) -> bool:
        """Return whether to apply a step, given its gradient's norm; adapt the scale for the next step.

        Raises:
            OverflowError: The gradient is not finite at any scale.
        """
        finite = math.isfinite(norm)
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good_steps == _GOOD_STEPS:
            self.value, self.good_steps = self.value * 2, 0
        if self.value < _SMALLEST:
            raise OverflowError(
                f"no step had a finite gradient at loss scales down to {self.value * 2:g}: the model itself "
                "overflows float16; use precision=bf16, or a smaller learning rate"
            )
        return finite
