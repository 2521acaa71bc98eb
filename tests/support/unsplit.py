"""A model's layers one after another, as plain PyTorch runs them."""

import torch
from torch import Tensor, nn

from trainer.models.model import Model


def build(model: Model, seed: int = 0) -> nn.ModuleDict:
    """Build every layer with a seed, and share tied parameters."""
    torch.manual_seed(seed)
    modules = {layer.name: layer.build() for layer in model.layers}
    for layer in model.layers:
        for tie in layer.ties:
            path, _, name = tie.parameter.rpartition(".")
            shared = modules[tie.owner].get_parameter(tie.owner_parameter)
            setattr(modules[layer.name].get_submodule(path), name, shared)
    return nn.ModuleDict({name.replace(".", "_"): module for name, module in modules.items()})


def run(layers: nn.ModuleDict, tokens: Tensor) -> Tensor:
    activation = tokens
    for layer in layers.values():
        activation = layer(activation)
    return activation
