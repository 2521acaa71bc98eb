"""What a step takes on a machine: every number that the simulator uses, measured or guessed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from trainer.schedule.actions import Kind


class Link(NamedTuple):
    """A way from one rank to another.

    Attributes:
        latency: Seconds that the first byte is under way.
        bandwidth: Bytes a second.
    """

    latency: float = 0.0
    bandwidth: float = inf


_AT_ONCE = Link()


@dataclass(frozen=True)
class Network:
    """The links between ranks; ranks are dealt to nodes in contiguous runs.

    Attributes:
        inside: Between two ranks of one node.
        between: Between two ranks of different nodes.
        ranks_per_node: How many ranks a node has; None: all of them.
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
    """What is averaged over the replicas in one all-reduce.

    Attributes:
        layer: Whose gradients.
        bytes: Their size.
        share: How much of the stage's last backward is done when they are complete; None where they are
            complete only at the stage's AVERAGE, for ties add to them.
    """

    layer: str
    bytes: int
    share: float | None = 1.0


@dataclass(frozen=True)
class Machine:
    """What the actions, messages and all-reduces of a step take.

    Attributes:
        work: Seconds that an action of a kind keeps its worker, by stage; other kinds take no time.
        message_bytes: By channel, (the sending end's kind, source stage, target stage); others are empty.
        network: The links.
        buckets: By stage, in the order in which they start.
        ring: Between neighbours of the ring of equal stages.
        cycle: Seconds from when gradients are complete to when Horovod's thread takes them, with all others
            that are complete by then.
        replicas: How many the ring joins.
        exchange: Seconds from when the last rank of a group comes to STEP to when they all do it, and what
            the update waits for other replicas' weights.
        begin: Seconds of a step before the first action.
        end: Seconds of a step after the last one.
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
        """Return the seconds of a ring's all-reduce of so many bytes, once it is taken up.

        Of 2 (R - 1) rounds, each sends a part of 1 / R to the neighbour (Patarasuk and Yuan, 2009, "Bandwidth
        optimal all-reduce algorithms for clusters of workstations").
        """
        rounds = 2 * (self.replicas - 1)
        return rounds * (self.ring.latency + size / self.replicas / self.ring.bandwidth)
