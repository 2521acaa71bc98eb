"""What a plan's prediction assumes of the machines, and the step that it then simulates."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.plan.plan import Plan
from trainer.plan.stages import Partition
from trainer.schedule.actions import Kind
from trainer.schedule.machine import Bucket, Link, Machine, Network
from trainer.schedule.simulate import simulate_on
from trainer.schedule.timeline import Timeline


@dataclass(frozen=True)
class Hardware:
    """The machines that a prediction assumes.

    Attributes:
        flops: Operations that a device does each second, sustained.
        inside: The link between two ranks of one node.
        between: The link between two ranks of different nodes.
        ranks_per_node: None: all of them are on one node.
    """

    flops: float
    inside: Link
    between: Link
    ranks_per_node: int | None = None


def predict_step(plan: Plan, hardware: Hardware) -> Timeline:
    """Return the step of the first replica, which has as many micro-batches as any, in seconds.

    Actions take what their layers' counted operations take, messages and all-reduces what their bytes take.
    All replicas are taken to be like the first. The optimizer's step itself takes no time.
    """
    return simulate_on(machine(plan, hardware), [plan.schedule(0)])[0]


def machine(plan: Plan, hardware: Hardware) -> Machine:
    """Return what the plan's actions, messages and all-reduces take on the hardware."""
    partition, layout = plan.partition, plan.layout
    one_node = hardware.ranks_per_node is None or layout.world <= hardware.ranks_per_node
    ring = hardware.inside if one_node else hardware.between  # groups are contiguous: the rings cross nodes
    return Machine(
        work={
            kind: [work / hardware.flops for work in by_stage] for kind, by_stage in partition.work.items()
        },
        message_bytes=_message_bytes(partition),
        network=Network(hardware.inside, hardware.between, hardware.ranks_per_node),
        buckets=_buckets(plan) if layout.replicas > 1 else (),
        ring=ring,
        replicas=layout.replicas,
        exchange=_weights_exchange(plan, ring),
    )


def _weights_exchange(plan: Plan, ring: Link) -> float:
    """Return the seconds in which a sharded optimizer's replicas gather each other's weights."""
    if plan.shards == 1:
        return 0.0
    held = [0] * plan.layout.ranks_per_group
    for stage, layers in enumerate(plan.partition.stages):
        for layer in layers:
            held[plan.layout.group_rank_of(stage)] += sum(plan.partition.costs[layer].trained_bytes.values())
    return (plan.shards - 1) * (ring.latency + max(held) / plan.shards / ring.bandwidth)


def _message_bytes(partition: Partition) -> dict[tuple[Kind, int, int], int]:
    """Return the bytes of a micro-batch's messages between neighbouring stages, by channel."""
    sizes = {}
    for stage, layers in enumerate(partition.stages[:-1]):
        size = partition.costs[layers[-1]].output_bytes
        sizes[Kind.SEND_ACTIVATION, stage, stage + 1] = size
        sizes[Kind.SEND_GRADIENT, stage + 1, stage] = size
    return sizes


def _buckets(plan: Plan) -> Sequence[Sequence[Bucket]]:
    """Return what each stage averages, in the order in which its last backward completes it."""
    partition, buckets = plan.partition, []
    for layers in partition.stages:
        total = sum(partition.costs[layer].backward for layer in layers)
        done, of_stage = 0.0, []
        for layer in reversed(layers):
            cost = partition.costs[layer]
            done += cost.backward
            tied = {tie.parameter for tie in plan.model.layers[layer].ties}
            size = sum(size for name, size in cost.trained_bytes.items() if name not in tied)
            if size:
                of_stage.append(Bucket(cost.name, size, min(done / total, 1.0) if total else 1.0))
        buckets.append(of_stage)
    return buckets
