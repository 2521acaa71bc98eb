"""Activations as pytrees: a flat list of tensors and a spec. No other code knows that they may be nested."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

# What passes between two layers: a tensor, or a nested tuple or dict of tensors and None.
# (Python 3.10 does not support recursive aliases at run time, hence Any inside.)
Activation: TypeAlias = Tensor | tuple[Any, ...] | dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a receiver must know about a tensor before it arrives."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorSpec":
        """Return the spec of a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype, tensor.requires_grad)

    @property
    def bytes(self) -> int:
        """Return the size in bytes."""
        count = self.dtype.itemsize
        for length in self.shape:
            count *= length
        return count


# How tensors nest: an index into the flat list, None, ("tuple", parts) or ("dict", keys, parts).
TreeSpec: TypeAlias = int | tuple[Any, ...] | None


@dataclass(frozen=True, slots=True)
class ActivationSpec:
    """Everything about an activation except its values; hashable, comparable and small to send."""

    nest: TreeSpec
    tensors: tuple[TensorSpec, ...]

    @property
    def bytes(self) -> int:
        """Return the size of all tensors in bytes."""
        return sum(spec.bytes for spec in self.tensors)

    @property
    def differentiable(self) -> tuple[TensorSpec, ...]:
        """Return the specs of the tensors that receive a gradient."""
        return tuple(spec for spec in self.tensors if spec.requires_grad)


def flatten(activation: Activation) -> tuple[list[Tensor], TreeSpec]:
    """Return the tensors of an activation in a fixed order, and their nesting.

    Raises:
        TypeError: It contains something other than tensors, None, tuples and dicts.
    """
    if isinstance(activation, Tensor):  # the common case, and this runs for every layer
        return [activation], 0
    tensors: list[Tensor] = []
    return tensors, _flatten(activation, tensors)


def _flatten(activation: Activation, tensors: list[Tensor]) -> TreeSpec:
    if isinstance(activation, Tensor):
        tensors.append(activation)
        return len(tensors) - 1
    if activation is None:
        return None
    if isinstance(activation, tuple):
        return ("tuple", tuple(_flatten(part, tensors) for part in activation))
    if isinstance(activation, dict):
        parts = tuple(_flatten(part, tensors) for part in activation.values())
        return ("dict", tuple(activation), parts)
    raise TypeError(
        f"an activation must be a tensor, or a nested tuple or dict of tensors and None, "
        f"not {type(activation).__name__}"
    )


def unflatten(tensors: list[Tensor], nest: TreeSpec) -> Activation:
    """Return the activation that `flatten` flattened."""
    if isinstance(nest, int):
        return tensors[nest]
    if nest is None:
        return None
    parts: Any = tuple(unflatten(tensors, part) for part in nest[-1])
    return parts if nest[0] == "tuple" else dict(zip(nest[1], parts, strict=True))


def spec_of(tensors: list[Tensor], nest: TreeSpec) -> ActivationSpec:
    """Return the spec of a flattened activation."""
    return ActivationSpec(nest, tuple(TensorSpec.of(tensor) for tensor in tensors))
