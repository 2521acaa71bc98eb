"""Parameters by name, and the patterns that choose among them.

A parameter is called "layer/parameter", such as "block.0/attention.project.weight". A pattern is a layer's
and a parameter's, each as a shell writes it for files (`*`, `?`, `[0-3]`; upper and lower case differ), with
the slash between: "block.*/*.bias". Without a slash it is a layer's, and chooses all of its parameters.

A tied parameter has one name, its owner's. So "head" does not choose a weight that the head shares with the
embedding, and "embedding" does, for the head as well.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from trainer.errors import UserError, suggest
from trainer.models.model import Layer, Model, Tie

Name = tuple[str, str]  # of the layer that owns it, and of the parameter in that layer's module


def chooses(pattern: str, name: Name) -> bool:
    """Return whether a pattern chooses the parameter of this name."""
    of_layer, of_parameter = _parts(pattern)
    return fnmatchcase(name[0], of_layer) and fnmatchcase(name[1], of_parameter)


def own_name(layer: str, parameter: str, ties: Iterable[Tie]) -> Name:
    """Return the one name of a layer's parameter: its owner's, if it is tied.

    Args:
        layer: The layer's name.
        parameter: The parameter's name in the layer's module.
        ties: The layer's ties.
    """
    for tie in ties:
        if tie.parameter == parameter:
            return tie.owner, tie.owner_parameter
    return layer, parameter


def choose_layers(names: Sequence[str], pattern: str, key: str) -> list[str]:
    """Return the layers that a pattern chooses.

    Args:
        names: The names of the model's layers.
        pattern: The pattern, of layers alone.
        key: The dotted key that it comes from, for messages.

    Raises:
        UserError: It chooses none.
    """
    chosen = [name for name in names if fnmatchcase(name, pattern)]
    if not chosen:
        raise UserError(
            f"{key}: {pattern!r} matches none of the model's {len(names)} layers{suggest(pattern, names)}"
        )
    return chosen


class Parameters:
    """The parameters of a model that is not built: of each layer, as its module has them on the meta device.

    Layers are built there when they are asked for; those that share one `build`, once.
    """

    def __init__(self, model: Model) -> None:
        self._layers = model.layers
        self._modules: dict[int, nn.Module] = {}

    def of(self, layer: Layer) -> dict[str, nn.Parameter]:
        """Return a layer's parameters, without numbers, by their names in its module."""
        key = id(layer.build)
        if key not in self._modules:
            self._modules[key] = build_on_meta(layer)
        return dict(self._modules[key].named_parameters())

    def choose(self, pattern: str, key: str) -> set[Name]:
        """Return the names of the parameters that a pattern chooses.

        Args:
            pattern: The pattern.
            key: The dotted key that it comes from, for messages.

        Raises:
            UserError: It chooses none, or only uses of parameters that other layers own.
        """
        layers = [layer for layer in self._layers if fnmatchcase(layer.name, _parts(pattern)[0])]
        uses = {
            (layer.name, name): own_name(layer.name, name, layer.ties)
            for layer in layers
            for name in self.of(layer)
            if chooses(pattern, (layer.name, name))
        }
        chosen = {own for use, own in uses.items() if use == own}
        if chosen:
            return chosen
        if uses:
            use, own = next(iter(uses.items()))
            raise UserError(
                f"{key}: {pattern!r} matches {'/'.join(use)} alone, which is tied to {'/'.join(own)}: "
                "a tied parameter goes by its owner's name"
            )
        near = suggest(pattern, self._near(layers, pattern))
        raise UserError(
            f"{key}: {pattern!r} matches no parameter of the model; "
            f"a pattern is of layers, as 'block.*', or of their parameters, as 'block.*/*.bias'{near}"
        )

    def _near(self, layers: Sequence[Layer], pattern: str) -> list[str]:
        """Return what the pattern could be instead: another layer, or another parameter of its layers."""
        if not layers:
            behind = pattern.partition("/")[1:]
            return ["".join((layer.name, *behind)) for layer in self._layers]
        return [f"{layer.name}/{name}" for layer in layers for name in self.of(layer)]


def build_on_meta(layer: Layer) -> nn.Module:
    """Build a layer without memory, or with it for a moment if the layer looks at its initial numbers."""
    try:
        with torch.device("meta"):
            module = layer.build()
    except Exception:  # a layer of the user's own may raise anything; if it is at fault, it does so again
        with torch.random.fork_rng(devices=[]):
            module = layer.build()
    return module.to("meta")


def _parts(pattern: str) -> Name:
    of_layer, _, of_parameter = pattern.partition("/")
    return of_layer, of_parameter or "*"
