"""Activations as NumPy arrays, which another process receives without a copy."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.activation import Activation, TreeSpec, flatten, unflatten


@dataclass(frozen=True)
class _Plain:
    """A contiguous tensor on the CPU: its bytes, with its type, shape and strides (any where a size is 1)."""

    content: NDArray[np.uint8]
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


Packed = tuple[list[_Plain | bytes], TreeSpec]


def pack(activation: Activation) -> Packed:
    """Return an activation as something that pickles well."""
    tensors, nest = flatten(activation)
    return [_pack(tensor) for tensor in tensors], nest


def unpack(packed: Packed) -> Activation:
    """Return the activation that was packed: the same bits, laid out alike."""
    parts, nest = packed
    return unflatten([_unpack(part) for part in parts], nest)


def _pack(tensor: Tensor) -> _Plain | bytes:
    plain = (
        type(tensor) is Tensor
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        and tensor.is_contiguous()
    )
    if not plain:  # sparse, or laid out otherwise, on which the order of additions may depend
        stream = io.BytesIO()
        torch.save(tensor, stream)
        return stream.getvalue()
    content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return _Plain(content, tensor.dtype, tuple(tensor.shape), tensor.stride())


def _unpack(part: _Plain | bytes) -> Tensor:
    if isinstance(part, bytes):
        loaded: Tensor = torch.load(io.BytesIO(part), weights_only=False)
        return loaded
    return torch.from_numpy(part.content).view(part.dtype).as_strided(part.shape, part.strides)
