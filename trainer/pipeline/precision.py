"""Mixed precision: the types inside layers and between them. Everything else stays float32.

    precision                               fp32      bf16      fp16
    matrix products in layers (autocast)    float32   bfloat16  float16
    activations between layers              float32   bfloat16  float16     and their gradients
    weights, their gradients, averages      float32   float32   float32
    the loss and its input                  float32   float32   float32

A layer returns the compute type whether or not the model is cut after it, so a cut causes no rounding and
messages are half as large. Only float32 is converted: integers, masks and other types that a layer chose
stay as they are. The documentation of `torch.amp` lists how autocast treats each operation: matrix products,
convolutions and attention take the compute type, some sums and losses take float32, and the rest take the
type of their inputs.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

COMPUTE_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The precision of a run.

    Attributes:
        compute: The type of matrix products, and of activations between layers.
    """

    compute: torch.dtype = torch.float32

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context of a layer's forward on a device.

        Its cache is off, so each use of a weight makes its own cast. Thus the gradients of the uses are added
        in float32, as a split backward adds them, and not in the compute type.
        """
        if self.compute is torch.float32:
            return nullcontext()
        return torch.autocast(device.type, self.compute, cache_enabled=False)

    def may_have_caused(self, error: Exception) -> bool:
        """Return whether an error of a layer looks as if types did not fit, which they do in float32."""
        words = ("dtype", "scalar type", "Half", "BFloat16", "bfloat16", "float16")
        return self.compute is not torch.float32 and any(word in str(error) for word in words)

    def between_layers(self, tensor: Tensor) -> Tensor:
        """Return a layer's output in the type that the next layer takes."""
        convert = tensor.dtype is torch.float32 is not self.compute
        return tensor.to(self.compute) if convert else tensor

    def for_loss(self, tensor: Tensor) -> Tensor:
        """Return the last layer's output in the type that the loss takes: sums of many terms need float32."""
        return tensor.float() if tensor.dtype is self.compute else tensor
