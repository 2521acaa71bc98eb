"""Names of parameters, and patterns that choose among them.

A parameter's name is "layer/parameter", such as "block.0/attention.project.weight". A pattern has a part for
the layer and one for the parameter, separated by a slash: "block.*/*.bias". Each is a shell-style wildcard
pattern (`*`, `?`, `[0-3]`; case-sensitive). A pattern without a slash names layers, and chooses all of their
parameters.

A tied parameter has one name, its owner's. So "head" does not choose a weight that the head shares with the
embedding; "embedding" does, for the head as well.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from trainer.errors import UserError, suggest
from trainer.models.model import Layer, Model, Tie

Name = tuple[str, str]  # the owning layer's, and the parameter's in that layer's module


def chooses(pattern: str, name: Name) -> bool:
    """Return whether a pattern chooses the parameter with this name."""
    of_layer, of_parameter = _parts(pattern)
    return fnmatchcase(name[0], of_layer) and fnmatchcase(name[1], of_parameter)


def own_name(layer: str, parameter: str, ties: Iterable[Tie]) -> Name:
    """Return the unique name of a layer's parameter: its owner's, if it is tied.

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
        pattern: A pattern for layers only.
        key: The dotted key that it comes from, for messages.

    Raises:
        UserError: It matches none.
    """
    chosen = [name for name in names if fnmatchcase(name, pattern)]
    if not chosen:
        raise UserError(
            f"{key}: {pattern!r} matches none of the model's {len(names)} layers{suggest(pattern, names)}"
        )
    return chosen


class Parameters:
    """The parameters of a model that is not built: each layer's, as in its module on the meta device.

    A layer is built on first use; layers that share a `build` are built once.
    """

    def __init__(self, model: Model) -> None:
        self._layers = model.parts
        self._modules: dict[int, nn.Module] = {}

    def of(self, layer: Layer) -> dict[str, nn.Parameter]:
        """Return a layer's parameters, without values, by their names in its module."""
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
            UserError: It matches none, or only parameters that are tied to other layers.
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
                f"{key}: {pattern!r} matches only {'/'.join(use)}, which is tied to {'/'.join(own)}: "
                "refer to a tied parameter by its owner's name"
            )
        near = suggest(pattern, self._near(layers, pattern))
        raise UserError(
            f"{key}: {pattern!r} matches no parameter of the model; "
            f"a pattern names layers, such as 'block.*', or their parameters, such as 'block.*/*.bias'{near}"
        )

    def _near(self, layers: Sequence[Layer], pattern: str) -> list[str]:
        """Return alternatives to the pattern: other layers, or other parameters of its layers."""
        if not layers:
            suffix = pattern.partition("/")[1:]
            return ["".join((layer.name, *suffix)) for layer in self._layers]
        return [f"{layer.name}/{name}" for layer in layers for name in self.of(layer)]


def build_on_meta(layer: Layer) -> nn.Module:
    """Build a layer without memory, or with memory briefly if the layer reads its initial values."""
    try:
        with torch.device("meta"):
            module = layer.build()
    except Exception:  # a custom layer may raise anything; if it is at fault, it raises below too
        with torch.random.fork_rng(devices=[]):
            module = layer.build()
    return module.to("meta")


def _parts(pattern: str) -> Name:
    of_layer, _, of_parameter = pattern.partition("/")
    return of_layer, of_parameter or "*"
