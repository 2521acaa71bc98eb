"""An optimizer's state as checkpoints hold it: by parameter, and what it keeps for all of them.

State of a parameter goes into its layer's file. What an optimizer keeps elsewhere belongs to no layer: in its
parameter groups (`group["step"]`), in attributes, or under a text in `optimizer.state`. Which groups a rank
has depends on the layout, so those values must be alike on all ranks; `optimizer.json` has them once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.checkpoint.packing import Packed
from trainer.checkpoint.values import Encoder, NotStorableError, shared_memory
from trainer.errors import UserError
from trainer.models.names import plain_parameters
from trainer.optim.initial import Settings, changed_attributes, changed_in_groups, group_settings
from trainer.pipeline.layer import BuiltLayer

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, Random)
_ADVICE = "keep such values in the state of each parameter, as numbers, tensors, or lists and dicts of them"

Optimizer = torch.optim.Optimizer


@dataclass(frozen=True)
class Shared:
    """What an optimizer keeps for many parameters, encoded.

    Attributes:
        groups: The values of each group, by the group's settings and by key. One entry without settings, if
            all groups have the same values.
        attributes: Values by the name of an attribute.
        state: Values by their text in `optimizer.state`.
    """

    groups: Mapping[Settings | None, Mapping[str, Any]]
    attributes: Mapping[str, Any]
    state: Mapping[str, Any]

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return any(self.groups.values()) or bool(self.attributes) or bool(self.state)


def layer_state(layer: BuiltLayer, optimizer: Optimizer | None) -> Packed:
    """Return the optimizer's state of a layer's parameters.

    Raises:
        NotStorableError: A checkpoint cannot hold it.
    """
    tensors: dict[str, Tensor] = {}
    encoder = Encoder(tensors)
    return Packed(tensors, _encode_layer(layer, optimizer, encoder))


def _encode_layer(layer: BuiltLayer, optimizer: Optimizer | None, encoder: Encoder) -> dict[str, Any]:
    states: dict[str, Any] = {}
    for name, parameter in layer.owned():
        state = optimizer.state.get(parameter) if optimizer is not None else None
        if state:
            where = f"the state of {layer.name}/{name}"
            states[name] = encoder.encode(dict(state), where, f"optimizer.{name}")
    return states


def shared_values(optimizer: Optimizer | None) -> Shared:
    """Return what an optimizer keeps for many parameters, on this rank.

    Raises:
        NotStorableError: A checkpoint cannot hold it.
    """
    if optimizer is None:
        return Shared({}, {}, {})
    encoder = Encoder(None)
    state: Mapping[Any, Any] = optimizer.state
    texts = {key: value for key, value in state.items() if isinstance(key, str)}

    def encoded(values: Mapping[str, Any], where: str) -> dict[str, Any]:
        return {key: encoder.encode(value, f"{where}[{key!r}]", "") for key, value in values.items()}

    groups: dict[Settings | None, dict[str, Any]] = {}
    for key, values in zip(group_settings(optimizer), changed_in_groups(optimizer), strict=True):
        these = encoded(values, "the parameter group")
        if groups.setdefault(key, these) != these:
            raise NotStorableError(
                f"two parameter groups of equal lr and weight_decay, {key}, have other values: {these}"[:300]
            )
    return Shared(
        groups,
        encoded(changed_attributes(optimizer), "the attributes"),
        encoded(texts, "the state"),
    )


def agreed(everyone: Sequence[Shared]) -> Shared:
    """Return the values of all ranks as one.

    Raises:
        UserError: They differ between ranks, so that the training would depend on the layout.
    """
    groups: dict[Settings | None, Mapping[str, Any]] = {}
    for theirs in everyone:
        for key, values in theirs.groups.items():
            _compare(groups.setdefault(key, values), values, f"its parameter groups of lr and decay {key}")
    holders = [theirs for theirs in everyone if theirs.groups]
    for theirs in holders:
        _compare(holders[0].attributes, theirs.attributes, "its attributes")
        _compare(holders[0].state, theirs.state, "its state")
    if not holders:
        return Shared({}, {}, {})
    first = next(iter(groups.values()))
    if all(values == first for values in groups.values()):
        groups = {None: first}
    return Shared(groups, holders[0].attributes, holders[0].state)


def _compare(one: Mapping[str, Any], other: Mapping[str, Any], where: str) -> None:
    for key in [*one, *other]:
        if json.dumps(one.get(key)) != json.dumps(other.get(key)):
            raise UserError(
                f"the optimizer keeps {key!r} in {where}, and it differs between ranks: what an optimizer "
                "computes from several parameters together would depend on the layout, and no checkpoint "
                f"could restore it; {_ADVICE}"
            )


def check_storable(layers: Sequence[BuiltLayer], optimizer: Optimizer | None) -> Shared:
    """Return what an optimizer keeps for many parameters, if a checkpoint can hold all of its state.

    Raises:
        UserError: It cannot, so that the run could not be resumed.
    """
    if optimizer is None:
        return Shared({}, {}, {})
    try:
        _check_objects(optimizer)
        _check_keys(layers, optimizer)
        _check_states(layers, optimizer)
        return shared_values(optimizer)
    except (NotStorableError, ValueError) as error:
        raise UserError(
            f"the state of the optimizer, {type(optimizer).__name__}, cannot be saved in a checkpoint, so "
            f"that the run could not resume: {error}; {_ADVICE}"
        ) from error


def _check_states(layers: Sequence[BuiltLayer], optimizer: Optimizer) -> None:
    """Raise if the state of a parameter cannot be encoded, or shares memory with something else."""
    tensors: dict[str, Tensor] = {}
    encoder = Encoder({})
    for layer in layers:
        found: dict[str, Tensor] = {}
        encoder.into(found)
        json.dumps(_encode_layer(layer, optimizer, encoder))
        weights = {f"weight.{name}": parameter for name, parameter in plain_parameters(layer.module).items()}
        tensors |= {f"{layer.name}/{name}": tensor for name, tensor in (weights | found).items()}
    if (pair := shared_memory(tensors)) is not None:
        raise NotStorableError(f"{pair[0]} and {pair[1]} share memory")


def _check_objects(optimizer: Optimizer) -> None:
    """Raise if the optimizer has state in objects that no checkpoint looks into."""
    if type(optimizer).state_dict is not Optimizer.state_dict:
        more = optimizer.state_dict().keys() - {"state", "param_groups"}
        if more:
            raise NotStorableError(
                f"its state_dict() has more than state and groups: {', '.join(sorted(more))}"
            )
    for name, value in vars(optimizer).items():
        if isinstance(value, Optimizer) and value.state and value.state is not optimizer.state:
            raise NotStorableError(f"the optimizer {name!r} inside it has state of its own")
        if isinstance(value, _GENERATORS):
            raise NotStorableError(f"it draws random numbers from a generator of its own, {name!r}")


def _check_keys(layers: Sequence[BuiltLayer], optimizer: Optimizer) -> None:
    """Raise if there is state of something other than a parameter or a text."""
    known = {parameter for layer in layers for parameter in layer.module.parameters()}
    for key in optimizer.state:
        if not isinstance(key, str) and key not in known:
            raise NotStorableError(f"its state has the key {str(key)[:40]!r}, which is no parameter")
