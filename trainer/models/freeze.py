"""Frozen parameters: they keep their initial weights."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from trainer.errors import UserError
from trainer.models.model import LOSS, Layer, Model
from trainer.models.names import Parameters, own_name, plain_parameters

_KEY = "train.freeze"


def freeze(model: Model, patterns: Sequence[str]) -> Model:
    """Return the model with the chosen parameters frozen as soon as their layer is built.

    So they are frozen alike in every process, and when layers are costed. Layers that share a `build` and
    freeze the same parameters still share one afterwards; layers that freeze nothing keep theirs. Layers that
    are tied to a frozen parameter freeze it too.

    A fully frozen layer also keeps its running statistics; its dropout stays active.

    Args:
        model: The model.
        patterns: Choose the parameters; see `trainer.models.names`.

    Raises:
        UserError: A pattern matches nothing, or no parameter is left to train.
    """
    if not patterns:
        return model
    parameters = Parameters(model)
    chosen = {name for pattern in patterns for name in parameters.choose(pattern, _KEY)}
    builds: dict[tuple[int, frozenset[str]], Callable[[], nn.Module]] = {}
    layers: list[Layer] = []
    is_trained = False
    for layer in model.layers:
        of_layer = parameters.of(layer)
        frozen = frozenset(name for name in of_layer if own_name(layer.name, name, layer.ties) in chosen)
        is_trained |= any(p.requires_grad for name, p in of_layer.items() if name not in frozen)
        build = builds.setdefault((id(layer.build), frozen), partial(_build, layer.build, frozen))
        layers.append(replace(layer, build=build) if frozen else layer)
    for name in chosen:
        if name[0] == LOSS and isinstance(model.loss, nn.Module):
            model.loss.get_parameter(name[1]).requires_grad_(False)
    if not is_trained:
        raise UserError(
            f"{_KEY}=[{','.join(patterns)}] freezes every parameter of the model: leave some trainable"
        )
    return replace(model, layers=tuple(layers))


def _build(build: Callable[[], nn.Module], frozen: frozenset[str]) -> nn.Module:
    module = build()
    for name, parameter in plain_parameters(module).items():
        if name in frozen:
            parameter.requires_grad_(False)
    return module
