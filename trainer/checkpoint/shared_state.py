"""What an optimizer keeps for many parameters: `optimizer.json` of a checkpoint, written and read."""

import json
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch

from trainer.checkpoint.expected import Expected
from trainer.checkpoint.optimizer_state import Shared
from trainer.checkpoint.schema import read_json
from trainer.checkpoint.values import decode
from trainer.optim.initial import ALWAYS_SET, Settings, group_settings, own_attributes

_PARTS = {"groups", "attributes", "state"}


def write_shared(shared: Shared) -> bytes:
    """Return the content of the file."""
    groups = [{"settings": key, "values": values} for key, values in shared.groups.items()]
    content = {"groups": groups, "attributes": shared.attributes, "state": shared.state}
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def read_shared(data: bytes, optimizer: torch.optim.Optimizer, expected: Expected) -> Callable[[], None]:
    """Return a function that puts the values of the file into an optimizer.

    Raises:
        ValueError: It is damaged, or does not fit the optimizer.
    """
    try:
        shared = _parse(read_json(data))
        groups = zip(optimizer.param_groups, group_settings(optimizer), strict=True)
        ready = [(group, _values_of(shared, key, expected)) for group, key in groups]
        attributes, state = _decoded(shared.attributes), _decoded(shared.state)
    except (KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{error!r}"[:200]) from error
    if type(optimizer).__module__.startswith("torch.") and shared:  # torch's own keep all in the state
        raise ValueError(f"{type(optimizer).__name__} keeps nothing there")
    if not attributes.keys() <= own_attributes(optimizer).keys() | expected.attributes:
        raise ValueError(f"this run's optimizer has no attribute {', '.join(attributes)}")

    def put() -> None:
        for group, values in ready:
            group.update(values)
        for name, value in attributes.items():
            setattr(optimizer, name, value)
        everything: MutableMapping[Any, Any] = optimizer.state
        everything.update(state)

    return put


def _parse(content: Any) -> Shared:
    if not isinstance(content, dict) or content.keys() != _PARTS:
        raise ValueError("it has other keys than this trainer knows: a newer one may have made it")
    groups: dict[Settings | None, Mapping[str, Any]] = {}
    for entry in content["groups"]:
        key = entry["settings"]
        groups[None if key is None else (float(key[0]), float(key[1]))] = entry["values"]
    return Shared(groups, content["attributes"], content["state"])


def _values_of(shared: Shared, key: Settings, expected: Expected) -> dict[str, Any]:
    """Return the values of one group; without settings they are those of all groups."""
    if key in shared.groups:
        values = shared.groups[key]
    elif None in shared.groups or not shared.groups:
        values = shared.groups.get(None, {})
    else:
        lr, decay = key
        raise ValueError(
            f"it has no values of a group with lr={lr:g} and weight_decay={decay:g}, and those of its groups "
            "differ: resume with the learning rates and weight decays of the run that saved it"
        )
    found = _decoded(values)
    if ALWAYS_SET & found.keys():
        raise ValueError("it has values that belong to the configuration")
    expected.check_group(key, found)
    return {name: expected.placed(key, name, value) for name, value in found.items()}


def _decoded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: decode(value, {}) for name, value in values.items()}
