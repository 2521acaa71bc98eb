"""What an optimizer had when it was built, to find out later what its steps have changed.

Optimizers keep the number of a step, running sums and the like in their parameter groups, or as attributes.
These stand beside settings, which come from the configuration and may be others when a run resumes.
"""

import inspect
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Settings = tuple[float, float]  # a group's peak learning rate and weight decay
INITIAL = "initial_values"  # the optimizer's attribute that has them
_SEQUENCES = (list, tuple, deque)
_MAPPINGS = (dict, OrderedDict)
_DEEPEST = 8
_SMALL = 1 << 20  # bytes; of larger tensors, the version shows a change
ALWAYS_SET = {"params", "lr", "peak"}  # the trainer sets the learning rate in every step
_OF_TORCH = {
    "state",
    "param_groups",
    "defaults",
    INITIAL,
    "_warned_capturable_if_run_uncaptured",
    "_need_device_dtype_check_for_fused",
    "_step_supports_amp_scaling",
}


@dataclass(frozen=True)
class _Version:
    """A large tensor as it was."""

    tensor: Tensor
    version: int


@dataclass(frozen=True)
class _Object:
    """An object of a class of its own or a function, with what it held."""

    itself: Any
    held: Mapping[str, Any]


@dataclass(frozen=True)
class _Initial:
    groups: Sequence[Mapping[str, Any]]
    attributes: Mapping[str, Any]


def remember_initial_values(optimizer: torch.optim.Optimizer) -> None:
    """Remember what an optimizer has in its groups and attributes."""
    groups = [{key: _copy(value) for key, value in group.items()} for group in optimizer.param_groups]
    attributes = {key: _copy(value) for key, value in own_attributes(optimizer).items()}
    setattr(optimizer, INITIAL, _Initial(groups, attributes))


def changed_in_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return, for each group, the values that steps have added or changed."""
    initial = _initial(optimizer).groups
    befores = [*initial, *[{} for _ in optimizer.param_groups]]
    return [
        {
            key: value
            for key, value in group.items()
            if key not in ALWAYS_SET and not (key in before and _same(value, before[key]))
        }
        for group, before in zip(optimizer.param_groups, befores, strict=False)
    ]


def group_settings(optimizer: torch.optim.Optimizer) -> list[Settings]:
    """Return what tells each group from others in every layout."""
    initial = _initial(optimizer).groups
    given = [*initial, *optimizer.param_groups[len(initial) :]]
    return [(float(group.get("peak", group["lr"])), float(group.get("weight_decay", 0.0))) for group in given]


def changed_attributes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the attributes that steps have added or changed; added functions are no state."""
    before = _initial(optimizer).attributes
    return {
        key: value
        for key, value in own_attributes(optimizer).items()
        if not (_same(value, before[key]) if key in before else callable(value))
    }


def _initial(optimizer: torch.optim.Optimizer) -> _Initial:
    """Return what was remembered; of an optimizer that nobody remembered, what it has now."""
    if not hasattr(optimizer, INITIAL):
        remember_initial_values(optimizer)
    initial: _Initial = getattr(optimizer, INITIAL)
    return initial


def own_attributes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the attributes that are not torch's."""
    return {
        key: value
        for key, value in vars(optimizer).items()
        if key not in _OF_TORCH and not key.startswith(("_optimizer_", "_zero_grad"))
    }


def _copy(value: Any, depth: int = 0) -> Any:
    kind = type(value)
    if kind is Tensor:
        return value.clone() if value.nbytes <= _SMALL else _Version(value, value._version)
    if depth > _DEEPEST:
        return value
    if kind in _SEQUENCES:
        return [_copy(item, depth + 1) for item in value]
    if kind in _MAPPINGS:
        return {key: _copy(item, depth + 1) for key, item in value.items()}
    if kind in (set, np.ndarray):
        return value.copy()
    held = _held(value)
    return value if held is None else _Object(value, _copy(held, depth + 1))


def _held(value: Any) -> dict[str, Any] | None:
    """Return what an object or a function holds; None for values, parameters and what has state elsewhere."""
    if isinstance(value, FunctionType):
        return dict(inspect.getclosurevars(value).nonlocals) if value.__closure__ else None
    if isinstance(value, Tensor | nn.Module | torch.optim.Optimizer | type | MethodType | ModuleType):
        return None
    return dict(vars(value)) if hasattr(value, "__dict__") else None


def _same(value: Any, before: Any) -> bool:
    """Return whether a value is what `_copy` has copied."""
    if isinstance(before, _Version):
        return value is before.tensor and value._version == before.version
    if isinstance(before, _Object):
        return value is before.itself and _same(_held(value), before.held)
    if type(value) in _SEQUENCES:
        return type(before) is list and len(value) == len(before) and all(map(_same, value, before))
    if type(value) in _MAPPINGS:
        alike = type(before) is dict and value.keys() == before.keys()
        return alike and all(_same(item, before[key]) for key, item in value.items())
    return value is before or (type(value) is type(before) and _equal(value, before))


def _equal(value: Any, before: Any) -> bool:
    if isinstance(value, Tensor):
        return torch.equal(value, before)
    if isinstance(value, np.ndarray):
        return np.array_equal(value, before)
    return isinstance(value, _COMPARABLE) and bool(value == before)


_COMPARABLE = (bool, int, float, complex, str, bytes, set, frozenset, np.generic, torch.dtype, torch.device)
