"""The memory of each rank, and the recomputation that makes it fit `memory.limit`."""

from dataclasses import dataclass, replace

from trainer.config.sizes import size_text
from trainer.errors import UserError
from trainer.pipeline.recomputation import Recompute
from trainer.plan.stages import Partition
from trainer.replication.sharding import largest_shard
from trainer.schedule.actions import Schedule
from trainer.schedule.peak_memory import StageBytes, peak_live_bytes, peak_of_worker

_POSTED = 2  # messages under way at each end of a stage, in each direction


@dataclass(frozen=True)
class Memory:
    """The predicted bytes of each rank of a group.

    Attributes:
        fixed: Weights, gradients, optimizer state and messages.
        activations: The peak of saved tensors.
    """

    fixed: tuple[int, ...]
    activations: tuple[int, ...]

    def total(self, rank: int) -> int:
        """Return the peak bytes of a rank."""
        return self.fixed[rank] + self.activations[rank]


def predict(partition: Partition, schedule: Schedule, state: float, shards: int = 1) -> Memory:
    """Return the memory of each rank of a group.

    This does not count temporary memory within an action, such as gradients between two kernels, nor the
    memory of libraries.

    Args:
        partition: The layers of each stage, and their recomputation modes.
        schedule: The schedule of one replica.
        state: The number of elements of optimizer state for each trained weight.
        shards: The number of replicas that share the optimizer's state; the largest shard counts.
    """
    activations = peak_live_bytes(schedule, stage_bytes(partition))
    return Memory(tuple(fixed_bytes(partition, schedule, state, shards)), activations)


def fixed_bytes(partition: Partition, schedule: Schedule, state: float, shards: int = 1) -> list[int]:
    """Return the bytes of each rank's weights, gradients, optimizer state and messages: see `predict`."""
    ranks = len(schedule.workers)
    fixed, trained = [0] * ranks, [list[int]() for _ in range(ranks)]
    for stage, rank in enumerate(schedule.placement):
        costs = [partition.costs[layer] for layer in partition.stages[stage]]
        fixed[rank] += sum(cost.parameter_bytes for cost in costs)
        trained[rank] += [size for cost in costs for size in cost.trained_bytes.values()]
        if ranks > 1:
            fixed[rank] += 2 * _POSTED * (_input_bytes(partition, stage) + costs[-1].output_bytes)
    for rank, sizes in enumerate(trained):
        fixed[rank] += sum(sizes) + int(state * largest_shard(sizes, shards))  # gradients and optimizer state
    return fixed


def stage_bytes(partition: Partition) -> list[StageBytes]:
    """Return the bytes that each stage holds for a micro-batch."""
    stages = []
    for stage, layers in enumerate(partition.stages):
        kept = [partition.costs[layer].saved_bytes[partition.recompute[layer]] for layer in layers]
        complete = [partition.costs[layer].saved_bytes[Recompute.NONE] for layer in layers]
        stages.append(
            StageBytes(
                kept=_input_bytes(partition, stage) + sum(kept),
                deferred=sum(partition.costs[layer].deferred_bytes for layer in layers),
                # While a layer recomputes, it holds all its saved tensors; layers recompute one at a time.
                backward=max(max(0, more - less) for more, less in zip(complete, kept, strict=True)),
            )
        )
    return stages


def fit(partition: Partition, schedule: Schedule, state: float, limit: int, shards: int = 1) -> Partition:
    """Return the partition with as little recomputation as keeps every rank within `limit` bytes.

    Until a rank fits, the layer that frees the most memory for its time recomputes more. The result is within
    one layer's time of the optimum.

    Args:
        partition: The layers of each stage, without recomputation.
        schedule: The schedule of one replica.
        state: The number of elements of optimizer state for each trained weight.
        limit: The limit of each rank, in bytes.
        shards: The number of replicas that share the optimizer's state.

    Raises:
        UserError: A rank does not fit even if every layer saves only its inputs.
    """
    fixed = fixed_bytes(partition, schedule, state, shards)
    for rank in range(len(schedule.workers)):
        mine = [stage for stage, holder in enumerate(schedule.placement) if holder == rank]
        layers = [layer for stage in mine for layer in partition.stages[stage]]
        while (needed := fixed[rank] + peak_of_worker(schedule, rank, stage_bytes(partition))) > limit:
            choices = [choice for layer in layers for choice in _more(partition, layer)]
            if not choices:
                raise UserError(
                    f"memory.limit={size_text(limit)} is too small: rank {rank} of a group needs "
                    f"{size_text(needed)} even if all its layers recompute everything; use more stages "
                    "(layout.stages), a smaller batch.micro_size, or a larger limit"
                )
            partition = min(choices, key=lambda choice: choice[0])[1]
    return partition


def _more(partition: Partition, layer: int) -> list[tuple[float, Partition]]:
    """Return the ways for a layer to recompute more, each with its time per byte freed."""
    cost, now = partition.costs[layer], partition.recompute[layer]
    ways = []
    for recompute in Recompute:
        freed = cost.saved_bytes[now] - cost.saved_bytes[recompute]
        if freed > 0:
            modes = (*partition.recompute[:layer], recompute, *partition.recompute[layer + 1 :])
            ways.append(
                (
                    (cost.recompute_time(recompute) - cost.recompute_time(now)) / freed,
                    replace(partition, recompute=modes),
                )
            )
    return ways


def _input_bytes(partition: Partition, stage: int) -> int:
    """Return the size of the activation that a stage receives from the previous one."""
    first = partition.stages[stage][0]
    return partition.costs[first - 1].output_bytes if first else 0
