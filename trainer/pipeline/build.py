"""Builds only the layers that a rank owns, so that a model may be larger than a host's memory."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from trainer.errors import UserError, add_note, suggest
from trainer.models.model import Layer
from trainer.models.names import plain_parameters
from trainer.models.own import build_own
from trainer.pipeline.layer import BuiltLayer
from trainer.seeds import derive, seed_generators


def build_layer(layers: Sequence[Layer], index: int, seed: int, device: torch.device) -> BuiltLayer:
    """Build one layer of the model on a device.

    Its initial weights depend only on the seed and on its name. They are drawn on the CPU, so they do not
    depend on the type of device. A tied parameter is frozen if and only if its owner's is.

    Raises:
        UserError: A tie names a parameter that does not exist, or two of different shapes.
    """
    layer = layers[index]
    built = BuiltLayer(index, layer.name, _build(layer, seed), layer.ties)
    for name, parameter in built.module.named_parameters():
        if is_lazy(parameter):
            raise UserError(
                f"layer {layer.name!r} has a lazy parameter, {name!r}, which gets its shape in the first "
                "forward: give the layer its sizes (nn.Linear(64, 10) in place of nn.LazyLinear(10))"
            )
    by_name = {other.name: other for other in layers[:index]}
    for tie in layer.ties:
        owner = _build(by_name[tie.owner], seed)
        with torch.no_grad():
            owned = _parameter(tie.owner, owner, tie.owner_parameter)
            use = _parameter(layer.name, built.module, tie.parameter)
            if use.shape != owned.shape:
                raise UserError(
                    f"layer {layer.name!r} ties its {tie.parameter!r} of shape {tuple(use.shape)} to "
                    f"{tie.owner_parameter!r} of layer {tie.owner!r}, whose shape is {tuple(owned.shape)}"
                )
            use.copy_(owned).requires_grad_(owned.requires_grad)
    built.module.to(device)
    return built


def _parameter(layer: str, module: nn.Module, name: str) -> nn.Parameter:
    """Return a parameter by its name in the module."""
    parameters = plain_parameters(module)
    if name not in parameters:
        raise UserError(
            f"a tie names the parameter {name!r} of layer {layer!r}, which has no such parameter"
            f"{suggest(name, parameters)}"
        )
    return parameters[name]


def _build(layer: Layer, seed: int) -> nn.Module:
    seed_generators(derive(seed, "weights", layer.name))
    try:
        return build_own(layer.build)
    except Exception as error:
        add_note(error, f"while building layer {layer.name!r}")
        raise
