"""What a model is: an ordered list of named layers, each built only where needed, and a loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from trainer.activation import Activation

LOSS = "loss"  # the name of a loss that has parameters, in checkpoints and patterns


@dataclass(frozen=True)
class Tie:
    """A parameter that a layer shares with an earlier layer, its owner.

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
    """One layer: the unit that the partition never splits.

    Attributes:
        name: Unique in the model; seeds, checkpoints and tables use it.
        build: Returns the module; the caller has set the seed and the device. Its forward maps the previous
            layer's activation (for the first layer, the data's inputs) to its own.
        ties: The parameters that this layer shares with earlier layers.
    """

    name: str
    build: Callable[[], nn.Module]
    ties: tuple[Tie, ...] = ()


class Loss(Protocol):
    """A loss as a sum and a count that turns it into a mean, so that batches of any size can be added."""

    def count(self, target: Activation) -> float:
        """Return the number of terms of the sum: samples, or tokens that are not masked; or their weight."""

    def __call__(self, output: Activation, target: Activation) -> Tensor:
        """Return the sum of the terms, a 0-dimensional tensor."""


@dataclass(frozen=True)
class Model:
    """An ordered list of layers, and a loss on the output of the last.

    A loss may be a module, and have parameters: they train, on the last stage.

    Attributes:
        layers: The layers.
        loss: The loss.
        crossing: Given a layer's number and the key of a tensor in the dict that it hands on, says what that
            tensor is. The table at a run's start lists it; None: there is nothing to say.
        notes: What a user should know, in sentences.
    """

    layers: tuple[Layer, ...]
    loss: Loss
    crossing: Callable[[int, str], str] | None = None
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[Layer, ...]:
        """Return all that has parameters: the layers and, if it has some, the loss, as a last layer."""
        loss = self.loss
        if isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
            return (*self.layers, Layer(LOSS, lambda: loss))
        return self.layers
