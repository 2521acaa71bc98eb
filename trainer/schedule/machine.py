"""What a step costs on a machine: every number that the simulator uses, measured or estimated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from trainer.schedule.actions import Kind


class Link(NamedTuple):
    """A connection from one rank to another.

    Attributes:
        latency: Seconds until the first byte arrives.
        bandwidth: Bytes per second.
    """

    latency: float = 0.0
    bandwidth: float = inf


_AT_ONCE = Link()


@dataclass(frozen=True)
class Network:
    """The links between ranks; contiguous ranks share a node.

    Attributes:
        inside: Between two ranks of one node.
        between: Between two ranks of different nodes.
        ranks_per_node: The number of ranks on a node; None: all of them.
    """

    inside: Link = _AT_ONCE
    between: Link = _AT_ONCE
    ranks_per_node: int | None = None

    def crosses(self, rank: int, other: int) -> bool:
        """Return whether two ranks are on different nodes."""
        return self.ranks_per_node is not None and rank // self.ranks_per_node != other // self.ranks_per_node

    def link(self, rank: int, other: int) -> Link:
        """Return the link from one rank to another."""
        return self.between if self.crosses(rank, other) else self.inside


class Bucket(NamedTuple):
    """Gradients that one all-reduce averages over the replicas.

    Attributes:
        layer: The layer that they belong to.
        bytes: Their size.
        share: The share of the stage's last backward that is done when they are complete; None if they are
            complete only at the stage's REDUCE_START, because ties add to them.
    """

    layer: str
    bytes: int
    share: float | None = 1.0


@dataclass(frozen=True)
class Machine:
    """The time that the actions, messages and all-reduces of a step take.

    Attributes:
        work: Seconds that an action keeps its worker busy, by kind and stage; other kinds take no time.
        message_bytes: Sizes by channel: (the sending end's kind, source stage, target stage). Others are
            empty.
        network: The links between ranks.
        buckets: By stage, in the order in which their all-reduces start.
        ring: The link between neighbours in the ring of equal stages.
        cycle: Seconds from when gradients are complete until Horovod's thread takes them, together with all
            others that are complete by then.
        replicas: The number of replicas in the ring.
        exchange: Seconds from when the last rank of a group reaches UPDATE until all perform it, including
            the time in which the update waits for other replicas' weights.
        begin: Seconds of a step before its first action.
        end: Seconds of a step after its last action.
    """

    work: Mapping[Kind, Sequence[float]]
    message_bytes: Mapping[tuple[Kind, int, int], int] = field(default_factory=dict)
    network: Network = field(default_factory=Network)
    buckets: Sequence[Sequence[Bucket]] = ()
    ring: Link = _AT_ONCE
    cycle: float = 0.0
    replicas: int = 1
    exchange: float = 0.0
    begin: float = 0.0
    end: float = 0.0

    def all_reduce(self, size: int) -> float:
        """Return the seconds that a ring all-reduce of `size` bytes takes once it has started.

        Each of 2 (R - 1) rounds sends 1 / R of the bytes to the neighbour (Patarasuk and Yuan, 2009,
        "Bandwidth optimal all-reduce algorithms for clusters of workstations").
        """
        rounds = 2 * (self.replicas - 1)
        return rounds * (self.ring.latency + size / self.replicas / self.ring.bandwidth)
