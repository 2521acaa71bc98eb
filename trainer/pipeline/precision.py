"""Mixed precision: what layers compute in, and what passes between them. Everything else stays float32.

    precision                               fp32      bf16      fp16
    products inside layers (autocast)       float32   bfloat16  float16
    what a layer hands to the next          float32   bfloat16  float16     and the gradients that come back
    weights, their gradients, averages      float32   float32   float32
    the loss, of the last layer's output    float32   float32   float32

A layer hands on the compute type whether or not the model is cut behind it: so a cut rounds nothing, and
messages are half as large. Only float32 is converted: integers, masks and what a layer chose for itself pass
as they are. What autocast makes of an operation is in torch's documentation of `torch.amp`: products,
convolutions and attention take the compute type, some sums and losses float32, and the rest what it is given.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

COMPUTE_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """What layers compute in.

    Attributes:
        compute: The type of products, and of what passes between layers.
    """

    compute: torch.dtype = torch.float32

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context of a layer's forward on a device.

        A weight is cast anew for each of its uses, so that the uses' gradients are added up in float32, as a
        split backward adds them, and not in the compute type.
        """
        if self.compute is torch.float32:
            return nullcontext()
        return torch.autocast(device.type, self.compute, cache_enabled=False)

    def between_layers(self, tensor: Tensor) -> Tensor:
        """Return a layer's output as the next layer takes it."""
        convert = tensor.dtype is torch.float32 is not self.compute
        return tensor.to(self.compute) if convert else tensor

    def for_loss(self, tensor: Tensor) -> Tensor:
        """Return the last layer's output as the loss takes it: sums of many terms want float32."""
        return tensor.float() if tensor.dtype is self.compute else tensor
