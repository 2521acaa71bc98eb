"""Names of parameters, and patterns that choose among them.

A parameter's name is "layer/parameter", such as "block.0/attention.project.weight". A pattern has a part for
the layer and one for the parameter, separated by a slash: "block.*/*.bias". Each is a shell-style wildcard
pattern (`*`, `?`, `[0-3]`; case-sensitive). A pattern without a slash names layers, and chooses all of their
parameters. If it begins with a path, with a dot before any wildcard, it names parameters too, whatever their
layer: "model.embed_tokens*" in a model that was cut, whose parameters keep their names.

A tied parameter has one name, its owner's. So "head" does not choose a weight that the head shares with the
embedding; "embedding" does, for the head as well. `torch.compile` changes no name.
"""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from trainer.distributed.aside import Send, run_aside
from trainer.errors import UserError, suggest
from trainer.models.model import Layer, Model, Tie
from trainer.models.skeleton import COMPILED, build_skeleton, never_compile

_PATH = re.compile(r"[^*?[]+\.")  # how a pattern begins that may name a parameter
Name = tuple[str, str]  # the owning layer's, and the parameter's in that layer's module


def plain_name(name: str) -> str:
    """Return a parameter's or buffer's name as if nothing were compiled: without the parts `_orig_mod`."""
    return ".".join(part for part in name.split(".") if part != COMPILED) if COMPILED in name else name


def plain_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return a module's parameters by their names as if nothing were compiled."""
    return {plain_name(name): parameter for name, parameter in module.named_parameters()}


def plain_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's buffers by their plain names."""
    return {plain_name(name): buffer for name, buffer in module.named_buffers()}


def chooses(pattern: str, name: Name) -> bool:
    """Return whether a pattern chooses the parameter with this name."""
    of_layer, slash, of_parameter = pattern.partition("/")
    if not slash and _PATH.match(pattern) and fnmatchcase(name[1], pattern):
        return True
    return fnmatchcase(name[0], of_layer) and fnmatchcase(name[1], of_parameter or "*")


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


_PATIENCE = 120.0  # seconds for building one layer
_Description = tuple[str, tuple[int, ...], torch.dtype, bool]  # name, shape, type, whether it is trained


class Parameters:
    """The parameters of a model that is not built: each layer's, as in its module on the meta device.

    On first use, every layer is built in a process aside, once for each different `build`.
    """

    def __init__(self, model: Model) -> None:
        self._layers = model.parts

    def of(self, layer: Layer) -> dict[str, nn.Parameter]:
        """Return a layer's parameters, without values, by their names in its module."""
        return {
            name: nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=trained)
            for name, shape, dtype, trained in self._described[id(layer.build)]
        }

    @cached_property
    def _described(self) -> dict[int, list[_Description]]:
        different = list({id(layer.build): layer for layer in self._layers}.values())

        def describe(send: Send) -> None:
            never_compile()
            for layer in different:
                send(_describe(layer))

        outcome = run_aside(describe, _PATIENCE)
        if outcome.died is not None:
            raise UserError(
                f"layer {different[len(outcome.sent)].name!r} could not be built to read its parameters' "
                f"names: {outcome.died}; its `build` must return a module without ranks and without a GPU"
            )
        return {id(layer.build): parts for layer, parts in zip(different, outcome.sent, strict=True)}

    def choose(self, pattern: str, key: str) -> set[Name]:
        """Return the names of the parameters that a pattern chooses.

        Args:
            pattern: The pattern.
            key: The dotted key that it comes from, for messages.

        Raises:
            UserError: It matches none, or only parameters that are tied to other layers.
        """
        uses = {
            (layer.name, name): own_name(layer.name, name, layer.ties)
            for layer in self._layers
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
        near = suggest(pattern, self._near(pattern))
        raise UserError(
            f"{key}: {pattern!r} matches no parameter of the model; "
            f"a pattern names layers, such as 'block.*', or their parameters, such as 'block.*/*.bias'{near}"
        )

    def _near(self, pattern: str) -> list[str]:
        """Return alternatives to the pattern: other layers, or other parameters of its layers."""
        of_layer, *suffix = pattern.partition("/")
        layers = [layer for layer in self._layers if fnmatchcase(layer.name, of_layer)]
        if not layers:
            every = [] if suffix[0] else [name for layer in self._layers for name in self.of(layer)]
            return ["".join((layer.name, *suffix)) for layer in self._layers] + every
        return [f"{layer.name}/{name}" for layer in layers for name in self.of(layer)]


def _describe(layer: Layer) -> list[_Description]:
    return [
        (name, () if is_lazy(p) else tuple(p.shape), p.dtype, p.requires_grad)
        for name, p in plain_parameters(build_skeleton(layer)[1]).items()
    ]
