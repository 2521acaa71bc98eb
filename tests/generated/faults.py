"""Mistakes that a run must refuse, or stop at, with a message that names the place.

Each is something that PyTorch lets pass: an own generator, a mean for a sum, a rank in the initial weights.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.generated.carriers import Extras


@dataclass(frozen=True)
class Fault:
    """A mistake.

    Attributes:
        words: What the message must contain.
        replicas: The fewest replicas that show it.
        recomputes: Whether only recomputation shows it.
    """

    words: tuple[str, ...]
    replicas: int = 1
    recomputes: bool = False


FAULTS = {
    "own generator in building": Fault(("begin with different weights", "faulty"), replicas=2),
    "rank in building": Fault(("begin with different weights", "faulty"), replicas=2),
    "own generator in forward": Fault(("run again for the backward", "faulty"), recomputes=True),
    "attribute that counts": Fault(("run again for the backward", "faulty"), recomputes=True),
    "own generator in data": Fault(("samples",)),
    "NaN in data": Fault(("not finite", "inputs")),
    "mean": Fault(("mean of its terms",)),
    "not a scalar": Fault(("the loss returned",)),
}
IN_A_LAYER = {name for name, fault in FAULTS.items() if "faulty" in fault.words}


class Faulty(nn.Module):
    """A product with a mistake."""

    def __init__(self, width: int, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.linear = nn.Linear(width, width)
        self.calls = 0
        if fault == "own generator in building":
            self.linear.bias.data += float(np.random.default_rng().random())
        elif fault == "rank in building":
            self.linear.bias.data += float(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        self.calls += 1
        y = self.linear(x)
        if self.fault == "own generator in forward":
            return y * float(np.random.default_rng().random())
        return y * self.calls if self.fault == "attribute that counts" else y


def spoil(fault: str, x: Any) -> Any:
    """Return a batch of samples with a mistake."""
    if fault == "own generator in data":
        return x + np.random.default_rng().random() if x.dtype.is_floating_point else 4 - x
    if fault == "NaN in data" and x.dtype.is_floating_point:
        return torch.full_like(x, torch.nan)
    return x
