"""Averaged gradients: global norm and clipping."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.pipeline.layer import BuiltLayer

_HALF = (torch.bfloat16, torch.float16)


def gradient_norms(layers: Sequence[BuiltLayer]) -> NDArray[np.float64]:
    """Return the gradient norm of every trained parameter that the layers own, in order.

    Parameters of one device and type take one call each: torch takes another way, with other bits, for lists
    that mix them. Norms of half-precision gradients are added in float32.
    """
    gradients = [p.grad for layer in layers for p in layer.trained() if p.grad is not None]
    norms = np.zeros(len(gradients))
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for number, gradient in enumerate(gradients):
        kinds.setdefault((gradient.device, gradient.dtype), []).append(number)
    for (_, dtype), numbers in kinds.items():
        wide = torch.float32 if dtype in _HALF else None
        found = torch._foreach_norm([gradients[number] for number in numbers], 2, wide)
        norms[numbers] = torch.stack(found).double().cpu().numpy()
    return norms


def global_norm(norms: NDArray[np.float64]) -> float:
    """Return the norm of the complete gradient, summed in the order of the model's parameters."""
    total = 0.0
    for norm in norms.tolist():
        total += norm * norm
    return math.sqrt(total)


def clip(gradients: Sequence[Tensor], norm: float, largest: float | None) -> None:
    """Scale gradients in place, so that the complete gradient has a norm of at most `largest`."""
    if gradients and largest is not None and norm > largest:  # a rank may have nothing to train
        torch._foreach_mul_(list(gradients), largest / norm)


def all_gradients(layers: Sequence[BuiltLayer]) -> list[Tensor]:
    """Return the gradients of all parameters of the layers, tied copies included."""
    return [p.grad for layer in layers for p in layer.module.parameters() if p.grad is not None]


def clear_gradients(layers: Sequence[BuiltLayer]) -> None:
    """Drop the gradients of the last step."""
    for layer in layers:
        for parameter in layer.module.parameters():
            parameter.grad = None
