"""What the state of this run's optimizer looks like, so that state of another shape never reaches it.

Fused kernels take the shape of state on trust: they write beyond the end of state that is too small. What a
checkpoint says of itself proves nothing, as it may be damaged like the state. So a copy of the optimizer, of
the same parameters, takes one step, and shows the keys, types and shapes that the optimizer will expect.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.errors import UserError
from trainer.optim.initial import INITIAL, Settings, changed_attributes, changed_in_groups, group_settings

_NUMBERS = (bool, int, float, complex, np.generic)

_GRADIENT = 1e-3


@dataclass(frozen=True)
class Expected:
    """What an optimizer has after its first step.

    Attributes:
        states: The state of every parameter.
        groups: The values that the step added to the parameter groups or changed, by the group's settings.
        attributes: The names of the attributes that it added or changed.
    """

    states: Mapping[nn.Parameter, Mapping[Any, Any]]
    groups: Mapping[Settings, Mapping[str, Any]]
    attributes: frozenset[str]

    def check(self, parameter: nn.Parameter, found: Mapping[Any, Any]) -> None:
        """Raise a ValueError unless a saved state looks like that of the first step; more keys are fine."""
        expected = self.states.get(parameter, {})
        for key, value in expected.items():
            if key not in found:
                raise ValueError(f"no {key!r} in the checkpoint, which this run's optimizer needs")
            _check_alike(value, found[key], repr(key))
        for key, value in found.items():
            weights = isinstance(value, Tensor) and value.shape == parameter.shape
            if weights and bool(value.isnan().any()):
                raise ValueError(f"{key!r} is not finite")

    def in_order(self, parameter: nn.Parameter, found: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return a saved state in the order of the first step's, which format 1 did not keep."""
        first = [key for key in self.states.get(parameter, {}) if key in found]
        return {key: found[key] for key in [*first, *(key for key in found if key not in first)]}

    def device_of(self, parameter: nn.Parameter, key: Any) -> torch.device:
        """Return where the optimizer has the tensors of a key; counters of steps may be on the host."""
        first = next(_tensors(self.states.get(parameter, {}).get(key)), None)
        return parameter.device if first is None else first.device

    def check_group(self, key: Settings, found: Mapping[str, Any]) -> None:
        """Raise a ValueError unless the saved values of a group look like those of the first step."""
        expected = self.groups.get(key, {})
        for name, value in expected.items():
            if name in found:
                _check_alike(value, found[name], repr(name))

    def placed(self, key: Settings, name: str, found: Any) -> Any:
        """Return a group's saved value, a tensor on the device where the optimizer has it."""
        like = self.groups.get(key, {}).get(name)
        return found.to(like.device) if isinstance(found, Tensor) and isinstance(like, Tensor) else found


def first_step(optimizer: torch.optim.Optimizer | None) -> Expected:
    """Return what an optimizer has after its first step.

    A copy of it takes that step. The step changes the parameters: load the weights afterwards.

    Args:
        optimizer: The rank's optimizer, which has taken no step.

    Raises:
        UserError: The optimizer fails in the step.
    """
    if optimizer is None:
        return Expected({}, {}, frozenset())
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in held:
        parameter.grad = torch.full_like(parameter, _GRADIENT)
    try:
        probe = _copy(optimizer, held)
        probe.step()
    except Exception as error:
        raise UserError(
            f"the optimizer, {type(optimizer).__name__}, fails in a trial step, which shows what state it "
            f"expects from a checkpoint: {type(error).__name__}: {error}"
        ) from error
    finally:
        for parameter in held:
            parameter.grad = None
    states = {parameter: dict(probe.state.get(parameter, {})) for parameter in held}
    changed = dict(zip(group_settings(optimizer), changed_in_groups(probe), strict=False))
    return Expected(states, changed, frozenset(changed_attributes(probe)))


def _copy(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Return a copy of an optimizer, of the same parameters; `deepcopy` alone would lose its attributes."""
    probe: torch.optim.Optimizer = object.__new__(type(optimizer))
    initial = vars(optimizer).get(INITIAL)
    memo: dict[int, Any] = {id(shared): shared for shared in (*parameters, initial)} | {id(optimizer): probe}
    attributes = {name: _copied(value, memo) for name, value in vars(optimizer).items()}
    attributes["param_groups"] = [
        {key: _copied(value, memo) for key, value in group.items()} for group in optimizer.param_groups
    ]
    probe.__dict__.update(attributes)
    return probe


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return deepcopy(value, memo)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):  # a lock, a generator, a stream
        return value


def _check_alike(expected: Any, found: Any, where: str) -> None:
    """Raise a ValueError if a value cannot stand for an expected one."""
    if expected is None:
        return
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor):
            raise _other_type(where, found, "tensor")
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            raise ValueError(
                f"{where} has shape {tuple(found.shape)} and {found.dtype} in the checkpoint, "
                f"{tuple(expected.shape)} and {expected.dtype} in this run"
            )
    elif isinstance(expected, _NUMBERS):
        if not isinstance(found, (*_NUMBERS, type(None))):
            raise _other_type(where, found, "number")
    elif type(found) is not type(expected):
        raise _other_type(where, found, type(expected).__name__)
    elif isinstance(expected, dict):
        for key in expected.keys() & found.keys():
            _check_alike(expected[key], found[key], f"{where}[{key!r}]")
    else:
        _check_members(expected, found, where)


def _other_type(where: str, found: object, expected: str) -> ValueError:
    return ValueError(f"{where} is a {type(found).__name__} in the checkpoint, a {expected} in this run")


def _check_members(expected: Any, found: Any, where: str) -> None:
    """Raise a ValueError if a collection has a tensor unlike all tensors of the expected one."""
    forms = {(tensor.shape, tensor.dtype) for tensor in _tensors(expected)}
    for tensor in _tensors(found):
        if forms and (tensor.shape, tensor.dtype) not in forms:
            raise ValueError(
                f"{where} has a tensor of shape {tuple(tensor.shape)} and {tensor.dtype} in the checkpoint, "
                f"unlike any in this run"
            )


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for item in value:
            yield from _tensors(item)
