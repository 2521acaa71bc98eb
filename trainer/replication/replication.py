"""What keeps the replicas of one model together, as the train step and the engine see it.

engine      begin(list) before a step, start(layer) when a layer's gradients are complete, progress()
after every layer, finish(layer) before the optimizer needs them
step        divisor(...) before the first backward, after_update() after the optimizer
optimizer   owns(parameter): which parameters this replica updates
checkpoint  saves, gathers_state, state, restore
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from trainer.config.schema import Config
from trainer.distributed.waiting import WaitMeter
from trainer.distributed.world import Communicator
from trainer.pipeline.layer import BuiltLayer, dense_gradient
from trainer.schedule.timeline import AllReduce


def gradients_of(layer: BuiltLayer) -> list[Tensor]:
    """Return the gradients of the parameters that a layer owns and trains.

    A parameter that this step did not use, here or on any replica, gets a gradient of zero: whether it did
    must not depend on the layout.
    """
    return [dense_gradient(parameter) for parameter in layer.trained()]


@dataclass(frozen=True)
class Parts:
    """What a strategy is built from, on each rank.

    Attributes:
        config: The run's configuration; `config.update` has the strategy's own keys.
        layers: The rank's layers, the same ones on every replica.
        replicas: The data-parallel group: the ranks that hold these layers.
        meter: Counts the time that this rank waits for other replicas.
    """

    config: Config
    layers: Sequence[BuiltLayer]
    replicas: Communicator
    meter: WaitMeter


class Replication:
    """A way to keep replicas together; this one is that of a single replica, which has nothing to do."""

    def begin(self, done: list[AllReduce]) -> None:
        """Begin a step.

        Args:
            done: Gets every all-reduce of the step when it is done.
        """

    def divisor(self, mine: float, total: float) -> float:
        """Return what the sum of this replica's losses is divided by before the backward.

        Args:
            mine: The number of terms of the loss on this replica: samples, or tokens that are not masked.
            total: The same over all replicas.
        """
        return total

    def start(self, layer: BuiltLayer) -> None:
        """Take a layer's gradients; the last backward of the step has added to them."""
        gradients_of(layer)

    def progress(self) -> None:
        """Record what is done; the engine calls it after every layer."""

    def finish(self, layer: BuiltLayer) -> None:
        """Return when a layer's gradients are what the optimizer should take."""

    def owns(self, parameter: nn.Parameter) -> bool:
        """Return whether this replica's optimizer updates a parameter that trains."""
        return True

    def after_update(self) -> None:
        """Do what follows the optimizer's step, such as an exchange of weights with the other replicas."""

    @property
    def keeps_equal(self) -> bool:
        """Return whether the replicas' weights are equal after every step; if not, nobody compares them."""
        return True

    @property
    def gathers_state(self) -> bool:
        """Return whether a checkpoint needs optimizer state from every replica, not from the first alone."""
        return False

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to keep of this strategy: plain values that JSON can hold."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
