"""Synchronous data parallelism: every step averages the gradients of all replicas, or sums their shards."""

from torch import nn

from trainer.config.update import SynchronousConfig
from trainer.pipeline.layer import BuiltLayer
from trainer.replication.averaging import HorovodAveraging
from trainer.replication.replication import Parts, Replication
from trainer.replication.sharding import Shards
from trainer.schedule.timeline import AllReduce


class Synchronous(Replication):
    """All replicas hold the same weights after every step.

    Args:
        config: Has no keys of its own.
        parts: The rank's parts; of their configuration `averaging` and `optimizer.sharded` matter.

    Attributes:
        shards: The parameters that train, divided among the replicas: one shard for all where the optimizer
            is not sharded.
    """

    def __init__(self, config: SynchronousConfig, parts: Parts) -> None:
        averaging, replicas = parts.config.averaging, parts.replicas
        self._divides_by_own_count = averaging.op == "adasum"
        self._averaging: HorovodAveraging | Replication = Replication()
        if replicas.size > 1:
            self._averaging = HorovodAveraging(averaging.op, averaging.compression, parts.meter)
        number = replicas.size if parts.config.optimizer.sharded else 1
        self.shards = Shards(parts.layers, number, own=replicas.rank % number, meter=parts.meter)

    def begin(self, done: list[AllReduce]) -> None:
        """Begin a step: append its all-reduces to a list as they are done."""
        self._averaging.begin(done)

    def divisor(self, mine: float, total: float) -> float:
        """Return the global count; Adasum combines gradients of every replica's own mean."""
        return mine if self._divides_by_own_count else total

    def start(self, layer: BuiltLayer) -> None:
        """Start to average a layer's gradients."""
        self._averaging.start(layer)

    def progress(self) -> None:
        """Record which all-reduces are done."""
        self._averaging.progress()

    def finish(self, layer: BuiltLayer) -> None:
        """Wait for a layer's averaged gradients."""
        self._averaging.finish(layer)

    def owns(self, parameter: nn.Parameter) -> bool:
        """Return whether a parameter is in this replica's shard."""
        return self.shards.has(parameter)

    def after_update(self) -> None:
        """Exchange the weights of the shards."""
        self.shards.exchange()

    @property
    def gathers_state(self) -> bool:
        """Return whether the optimizer's state is divided among the replicas."""
        return self.shards.number > 1
