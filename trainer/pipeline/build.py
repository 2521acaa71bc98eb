"""Builds the layers that a rank owns, and no others, so that a model larger than a host can be built."""

from collections.abc import Sequence

import torch

from trainer.models.model import Layer
from trainer.pipeline.stage import BuiltLayer
from trainer.seeds import derive, seed_device


def build_layer(layers: Sequence[Layer], index: int, seed: int, device: torch.device) -> BuiltLayer:
    """Build one layer of the model on a device.

    Its initial weights follow from the seed and its name alone. They are drawn on the CPU, so that they do
    not depend on the kind of device either.
    """
    layer = layers[index]
    built = BuiltLayer(index, layer.name, _build(layer, seed), layer.ties)
    by_name = {other.name: other for other in layers[:index]}
    for tie in layer.ties:
        owner = _build(by_name[tie.owner], seed)
        with torch.no_grad():
            built.module.get_parameter(tie.parameter).copy_(owner.get_parameter(tie.owner_parameter))
    built.module.to(device)
    return built


def _build(layer: Layer, seed: int) -> torch.nn.Module:
    seed_device(torch.device("cpu"), derive(seed, "weights", layer.name))
    return layer.build()
