"""Runs a model that was cut as a pipeline does, layer by layer, each with a graph of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.activation import flatten, unflatten
from trainer.models.model import Model
from trainer.pipeline.build import build_layer
from trainer.pipeline.layer import BuiltLayer

CPU = torch.device("cpu")


def built(model: Model) -> list[BuiltLayer]:
    return [build_layer(model.layers, index, 0, CPU) for index in range(len(model.layers))]


def whole(make: Callable[[], nn.Module], layers: Sequence[BuiltLayer]) -> nn.Module:
    """Return the model as it is, with the layers' weights."""
    state: dict[str, Tensor] = {}
    for layer in layers:
        state |= layer.module.state_dict()
    model = make()
    model.load_state_dict(state)
    return model


def without_dropout(*modules: nn.Module) -> None:
    """Each layer has a seed of its own, so dropout differs from that of the whole model."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
            for name, value in vars(part).items():
                if "dropout" in name and isinstance(value, float):  # as attention keeps its own
                    setattr(part, name, 0.0)


Tape = list[tuple[list[Tensor], list[Tensor]]]  # every layer's inputs and outputs


def forward(layers: Sequence[BuiltLayer], activation: Any) -> tuple[Any, Tape]:
    """Run the layers, each with a graph of its own."""
    tape = []
    for layer in layers:
        tensors, nest = flatten(activation)
        leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        activation = layer.module(unflatten(leaves, nest))
        tape.append((leaves, flatten(activation)[0]))
    return activation, tape


def backward(tape: Tape, gradient: Tensor) -> None:
    gradients: list[Tensor | None] = [gradient]
    for leaves, outputs in reversed(tape):
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None and o.requires_grad]
        torch.autograd.backward([output for output, _ in pairs], [g for _, g in pairs])
        gradients = [leaf.grad for leaf in leaves]


def gradient_of(name: str, layers: Sequence[BuiltLayer]) -> Tensor:
    """Return a parameter's gradient: the sum over the layers that use it, in the order of their backwards."""
    total: Tensor | None = None
    names = {tie.parameter: tie.owner_parameter for layer in layers for tie in layer.ties}
    name = names.get(name, name)
    for layer in reversed(layers):
        uses = {tie.owner_parameter: tie.parameter for tie in layer.ties}
        parameters = dict(layer.module.named_parameters(remove_duplicate=False))
        use = parameters.get(uses.get(name, name))
        if use is not None and use.grad is not None:
            total = use.grad if total is None else total + use.grad
    assert total is not None
    return total
