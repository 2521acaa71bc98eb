"""What a model is: an ordered list of named layers, each built only where it is needed, and a loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from trainer.activation import Activation


@dataclass(frozen=True)
class Tie:
    """A parameter of a layer that is one and the same as a parameter of an earlier layer, its owner.

    Attributes:
        parameter: Its name in the module that declares the tie, such as "linear.weight".
        owner: The name of the earlier layer.
        owner_parameter: Its name in the owner's module, such as "tokens.weight".
    """

    parameter: str
    owner: str
    owner_parameter: str


@dataclass(frozen=True)
class Layer:
    """One layer: the unit that a cut never divides.

    Attributes:
        name: Unique in the model; seeds, checkpoints and tables use it.
        build: Makes the module, under a seed and a device that the caller has set. Its forward takes
            the activation of the layer before (the first layer: the data's inputs) and returns one.
        ties: The parameters that this layer shares with earlier layers.
    """

    name: str
    build: Callable[[], nn.Module]
    ties: tuple[Tie, ...] = ()


class Loss(Protocol):
    """A loss as a sum and the count that turns it into a mean, so that batches of any size can be added."""

    def count(self, target: Activation) -> int:
        """Return how many terms the sum has: samples, or tokens that are not masked."""

    def __call__(self, output: Activation, target: Activation) -> Tensor:
        """Return the sum of the terms, a tensor of no dimensions."""


@dataclass(frozen=True)
class Model:
    """An ordered list of layers and a loss on what the last of them returns."""

    layers: tuple[Layer, ...]
    loss: Loss
